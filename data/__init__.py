"""Turn radar files of any service into verified windows: what the rooms below share, and the commands on archives."""
