"""A QNode inside a JAX program: what is classical in it stays there, its gates go to a device."""
