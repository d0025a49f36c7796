"""The networks: plain nn.Modules with explicit arguments."""
