"""The data: found, verified, downloaded, loaded and split."""
