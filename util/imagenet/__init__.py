"""What only the tool `util/unzip_imagenet` needs; it imports common, never the reverse."""
