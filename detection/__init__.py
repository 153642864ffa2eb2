"""Finding marked images among others (section 5.2.6)."""
