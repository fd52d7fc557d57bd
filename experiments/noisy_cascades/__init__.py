"""How much of the spectral form's gain the noise of a device leaves."""
