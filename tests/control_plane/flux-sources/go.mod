// The CRDs of Flux's sources (see ../README.md). Only its files are used, nothing is built: no `go mod tidy` here.
module driftgate.dev/tests/control_plane/flux-sources

go 1.26.0

require github.com/fluxcd/source-controller v1.9.0
