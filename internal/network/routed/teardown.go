package routed

import (
	"context"
	"fmt"

	"github.com/orlop-io/orlop/internal/base/fault"
)

var (
	afterAllDevices = fault.New("network.teardown.devices-removed")
	afterNoTable    = fault.New("network.teardown.table-removed")
	afterUnrouted   = fault.New("network.teardown.addresses-and-routes-removed")
)

// Teardown implements dataplane.Dataplane. It finds everything by what the kernel and the
// durable state say, so it works after any crash, with whatever was there.
func (p *Plane) Teardown(ctx context.Context) error {
	s, err := p.look()
	if err != nil {
		return err
	}
	var names []string
	for name := range s.devices {
		names = append(names, name)
	}
	if err := p.removeDevices(names...); err != nil {
		return fmt.Errorf("remove interfaces: %w", err)
	}
	afterAllDevices.Hit()
	p.table.Lock()
	defer p.table.Unlock()
	if err := p.nft.Delete(p.o.Instance); err != nil {
		return err
	}
	p.ports = map[string]portSet{}
	afterNoTable.Hit()
	blocks, err := p.used.All()
	if err != nil {
		return err
	}
	for key, b := range blocks {
		if err := p.withdraw(b); err != nil {
			return err
		}
		if err := p.used.Delete(key); err != nil {
			return err
		}
	}
	afterUnrouted.Hit()
	return p.restore()
}
