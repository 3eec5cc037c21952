// Command crash goes through every operation of a network, printing a line after each that
// was acknowledged, so that a test can kill it at each fault point (it is built with
// -tags faults) and see what is left.
//
//	crash points
//	crash run DIR NETNS-A NETNS-B
package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/network"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	switch os.Args[1] {
	case "points":
		for _, p := range fault.List() {
			if strings.HasPrefix(p, "network.") {
				fmt.Println(p)
			}
		}
	case "run":
		run(os.Args[2], os.Args[3], os.Args[4])
	}
}

func open(dir string) (*network.Network, func()) {
	volatile, err := store.Open(filepath.Join(dir, "run.db"), store.Volatile)
	check(err)
	durable, err := store.Open(filepath.Join(dir, "state.db"), store.Durable)
	check(err)
	n, err := network.Open(context.Background(), network.Options{
		Instance: "orlop-crash", Run: dir, DB: volatile, Durable: durable,
		IPv4Block: netip.MustParsePrefix("10.88.0.0/24"), IPv6Block: netip.MustParsePrefix("fd6f:726c:6f70::/64"),
	})
	check(err)
	return n, func() {
		check(n.Close())
		check(volatile.Close())
		check(durable.Close())
	}
}

func run(dir, nsA, nsB string) {
	ctx := context.Background()
	say := func(what string, a network.Attachment) {
		fmt.Print(what)
		for _, p := range a.Addresses {
			fmt.Print(" ", p.Addr())
		}
		fmt.Println()
	}
	port := []network.PortMapping{{HostPort: 8080, PodPort: 80}}
	n, done := open(dir)
	fmt.Println("opened")
	a, err := n.Attach(ctx, network.Request{PodID: "a", Netns: nsA, Ports: port})
	check(err)
	say("a-attached", a)
	b, err := n.Attach(ctx, network.Request{PodID: "b", Netns: nsB})
	check(err)
	say("b-attached", b)
	_, err = n.Attach(ctx, network.Request{PodID: "c", Netns: "/nowhere", Ports: []network.PortMapping{{HostPort: 8081, PodPort: 80}}})
	if err == nil {
		check(fmt.Errorf("attached to a namespace that is not there"))
	}
	check(n.Detach(ctx, "a"))
	fmt.Println("a-detached")
	a, err = n.Attach(ctx, network.Request{PodID: "a", Netns: nsA, Ports: port})
	check(err)
	say("a-attached", a)
	check(n.Reconcile(ctx, map[string]bool{"a": true}))
	fmt.Println("b-gone")
	check(n.Detach(ctx, "a"))
	fmt.Println("a-detached")
	done()
	n, done = open(dir)
	check(n.Teardown(ctx))
	fmt.Println("torn-down")
	done()
}
