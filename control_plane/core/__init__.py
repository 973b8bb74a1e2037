"""Pure core: data and decision rules of steering, without I/O, clock or framework."""
