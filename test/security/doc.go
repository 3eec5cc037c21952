// Package security attacks containers through the OCI command line, where what is not the
// executor's comes in: bundles, the directory of state, the gate, descriptors that are
// passed on, a caller that is a new process each time. The executor's own attacks are
// beside it; docs/design/executor-security.md tells of both.
package security
