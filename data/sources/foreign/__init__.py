"""Read formats that other libraries know: the time in a file's name, importers of pysteps, and what xarray opens."""
