"""What an array of one's own weighs on the wire: ``fedmpi wire``."""
