// Command orlop-init is the executor's child half. It is not for people: the executor
// runs it from a sealed memfd with a plan to carry out (internal/platform/executor).
package main

import "github.com/orlop-io/orlop/internal/platform/executor/child"

func main() { child.Main() }
