module driftgate/load

go 1.22
