"""What leaves clinseg: label maps in the geometry of their images, verified before they have a name."""
