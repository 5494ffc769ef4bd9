"""acoupi_fleet: the workstation's program; provisions, restarts, checks and watches acoustic sensors over SSH."""
