package network

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// pool hands out the addresses of one block, round robin: an address that was given back
// is not given out again before every other has been, so that what remembers it (peers'
// connections, caches, tracked flows) meets nobody. The block's first address (IPv4's
// network, IPv6's subnet-router anycast, RFC 4291 section 2.6.1), the second (the node's
// own) and IPv4's last (broadcast) are never given out.
type pool struct {
	block netip.Prefix
	size  uint64 // of addresses, counted from the block's first; a block above 2⁶² is cut there
	next  uint64 // offset to try first
	used  map[netip.Addr]bool
}

func newPool(block netip.Prefix, next uint64) *pool {
	p := &pool{block: block.Masked(), used: map[netip.Addr]bool{}}
	free := block.Addr().BitLen() - block.Bits()
	p.size = 1 << min(free, 62)
	if block.Addr().Is4() {
		p.size-- // broadcast
	}
	p.next = next
	return p
}

// at returns the address at an offset of the block.
func (p *pool) at(offset uint64) netip.Addr {
	b := p.block.Addr().As16()
	lo, carry := bits.Add64(binary.BigEndian.Uint64(b[8:]), offset, 0)
	hi, _ := bits.Add64(binary.BigEndian.Uint64(b[:8]), 0, carry)
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	a := netip.AddrFrom16(b)
	if p.block.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// take returns the next free address. The offset after it is where to go on; nothing is
// marked before mark, so that a caller that fails need not give it back.
func (p *pool) take() (a netip.Addr, next uint64, err error) {
	const first = 2
	if p.size <= first || uint64(len(p.used)) >= p.size-first {
		return a, 0, p.exhausted()
	}
	n := max(p.next, first)
	for range len(p.used) + 1 {
		if n >= p.size {
			n = first
		}
		a = p.at(n)
		n++
		if !p.used[a] {
			return a, n, nil
		}
	}
	return a, 0, p.exhausted()
}

func (p *pool) exhausted() error {
	setting := "network.ipv4Block"
	if p.block.Addr().Is6() {
		setting = "network.ipv6Block"
	}
	return errs.New(errs.ResourceExhausted, "no address left in the block %s: %d pods have one; delete some, or set %s to a larger block", p.block, len(p.used), setting)
}

// mark notes that an address is in use. One of outside the block (from before it was
// changed) is no concern of the pool.
func (p *pool) mark(a netip.Addr, next uint64) {
	if p.block.Contains(a) {
		p.used[a] = true
		if next > 0 {
			p.next = next
		}
	}
}

func (p *pool) free(a netip.Addr) { delete(p.used, a) }
