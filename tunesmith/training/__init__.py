"""How models are trained. With inference/ the only package that imports torch; knows no store and no API."""
