"""The bundles of a device on its disk, whatever crashes."""
