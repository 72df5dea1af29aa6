"""The attacks, one file each; `catalog` lists them."""
