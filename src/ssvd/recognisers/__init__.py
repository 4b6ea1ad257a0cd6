"""Speech recognisers behind one interface, one file a family."""
