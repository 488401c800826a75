"""The inner loops: one interface, an implementation per kind of hardware."""
