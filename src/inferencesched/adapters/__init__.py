"""How does the library meet the rest of the world? One module for each optional dependency; none is imported here."""
