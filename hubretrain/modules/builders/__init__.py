"""modules/builders."""
