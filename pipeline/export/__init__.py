"""What leaves clinseg: maps in the geometry of their images, verified before they have a name."""
