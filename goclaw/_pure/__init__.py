"""The plain-Python twin of goclaw._fast: specification, oracle of differential tests, fallback."""
