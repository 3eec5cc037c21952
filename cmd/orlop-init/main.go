// Command orlop-init is the executor's child half. It is not for people: the executor
// runs it from a sealed memfd with a plan to carry out (internal/platform/executor).
//
// The runtime does without the limit of its control group, as in orlop-oci.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import "github.com/orlop-io/orlop/internal/platform/executor/child"

func main() { child.Main() }
