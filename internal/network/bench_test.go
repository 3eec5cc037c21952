package network_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/network"
	"github.com/orlop-io/orlop/internal/network/networktest"
)

// What CNI's ADD and DEL are. The device's removal goes on behind Detach; "settled" waits for it.
func BenchmarkAttachDetach(b *testing.B) {
	for _, c := range []struct {
		name  string
		ports int
		pods  int // that are there already
		wait  bool
	}{{"plain", 0, 0, true}, {"port", 1, 0, true}, {"plain-among-200", 0, 200, true}, {"port-among-200", 1, 200, true}} {
		b.Run(c.name, func(b *testing.B) {
			n := newNode(b)
			ctx := context.Background()
			for i := range c.pods {
				n.pod(fmt.Sprint("there", i), network.PortMapping{HostPort: uint16(30000 + i), PodPort: 80})
			}
			var ports []network.PortMapping
			for i := range c.ports {
				ports = append(ports, network.PortMapping{HostPort: uint16(20000 + i), PodPort: 80})
			}
			var attach, detach, settle float64
			ns := networktest.Namespace(b)
			i := 0
			for b.Loop() {
				id := fmt.Sprint("p", i)
				i++
				attach += seconds(func() {
					if _, err := n.Attach(ctx, network.Request{PodID: id, Netns: ns, Ports: ports}); err != nil {
						b.Fatal(err)
					}
				})
				detach += seconds(func() {
					if err := n.Detach(ctx, id); err != nil {
						b.Fatal(err)
					}
				})
				settle += seconds(func() {
					if err := n.Settle(ctx); err != nil {
						b.Fatal(err)
					}
				})
			}
			b.ReportMetric(1000*attach/float64(i), "attach-ms")
			b.ReportMetric(1000*detach/float64(i), "detach-ms")
			b.ReportMetric(1000*settle/float64(i), "settle-ms")
		})
	}
}

func seconds(fn func()) float64 {
	start := time.Now()
	fn()
	return time.Since(start).Seconds()
}

// Many at once: removals are gathered, so each costs less.
func BenchmarkManyAtOnce(b *testing.B) {
	n := newNode(b)
	ctx := context.Background()
	const many = 16
	var spaces []string
	for range many {
		spaces = append(spaces, networktest.Namespace(b))
	}
	each := func(fn func(i int) error) {
		errs := make(chan error)
		for i := range many {
			go func() { errs <- fn(i) }()
		}
		for range many {
			if err := <-errs; err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		each(func(i int) error {
			_, err := n.Attach(ctx, network.Request{PodID: fmt.Sprint("p", i), Netns: spaces[i]})
			return err
		})
		each(func(i int) error { return n.Detach(ctx, fmt.Sprint("p", i)) })
		if err := n.Settle(ctx); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N)/many, "ms/pod")
}
