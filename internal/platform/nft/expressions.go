package nft

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The functions of this file are the words of which rules are made. Registers are used as
// 4-byte ones from NFT_REG32_00 on: a concatenated key takes as many as it has 4-byte parts.

const reg0 = unix.NFT_REG32_00

// Rules joins expressions into one list.
func Rules(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// IPv4 matches IPv4 packets, IPv6 those of IPv6.
func IPv4() []expr.Any { return protocol(unix.NFPROTO_IPV4) }

// IPv6 matches IPv6 packets.
func IPv6() []expr.Any { return protocol(unix.NFPROTO_IPV6) }

func protocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{p}},
	}
}

// InGroup matches packets that came in by an interface whose group is g in the bits of mask.
func InGroup(g, mask uint32, is bool) []expr.Any { return group(expr.MetaKeyIIFGROUP, g, mask, is) }

// OutGroup matches packets that go out by such an interface, or by none such.
func OutGroup(g, mask uint32, is bool) []expr.Any { return group(expr.MetaKeyOIFGROUP, g, mask, is) }

func group(key expr.MetaKey, g, mask uint32, is bool) []expr.Any {
	op := expr.CmpOpEq
	if !is {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: native(mask), Xor: native(0)},
		&expr.Cmp{Op: op, Register: reg0, Data: native(g)},
	}
}

// In matches packets that came in by an interface whose name is in the set.
func In(set string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		&expr.Lookup{SourceRegister: reg0, SetName: set},
	}
}

// Spoofed matches packets whose source address is not routed back by the interface by which
// they came.
func Spoofed() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg0, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: native(0)},
	}
}

// ToHost matches packets to one of the host's own addresses.
func ToHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: native(unix.RTN_LOCAL)},
	}
}

// Addresses of packets: offset and length in the header of their family.
func address(v6, dst bool, reg uint32) *expr.Payload {
	p := &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	if v6 {
		p.Offset, p.Len = 8, 16
	}
	if dst {
		p.Offset += p.Len
	}
	return p
}

// Source matches packets whose source address begins as addr does, in bits.
func Source(addr []byte, bits int) []expr.Any { return prefix(addr, bits, false, expr.CmpOpEq) }

// Destination matches packets whose destination begins so; NotDestination those where not.
func Destination(addr []byte, bits int) []expr.Any { return prefix(addr, bits, true, expr.CmpOpEq) }

// NotDestination matches packets whose destination does not begin so.
func NotDestination(addr []byte, bits int) []expr.Any {
	return prefix(addr, bits, true, expr.CmpOpNeq)
}

func prefix(addr []byte, bits int, dst bool, op expr.CmpOp) []expr.Any {
	mask, value := make([]byte, len(addr)), make([]byte, len(addr))
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	for i := range addr {
		value[i] = addr[i] & mask[i]
	}
	es := []expr.Any{address(len(addr) == 16, dst, reg0)}
	if bits < 8*len(addr) {
		es = append(es, &expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: uint32(len(addr)), Mask: mask, Xor: make([]byte, len(addr))})
	}
	return append(es, &expr.Cmp{Op: op, Register: reg0, Data: value})
}

// SourceIn matches packets whose source address is, or is not, in the set.
func SourceIn(v6 bool, set string, is bool) []expr.Any {
	return []expr.Any{address(v6, false, reg0), &expr.Lookup{SourceRegister: reg0, SetName: set, Invert: !is}}
}

// DestinationIn matches packets whose destination is, or is not, in the set.
func DestinationIn(v6 bool, set string, is bool) []expr.Any {
	return []expr.Any{address(v6, true, reg0), &expr.Lookup{SourceRegister: reg0, SetName: set, Invert: !is}}
}

// PairIn matches packets whose source and destination, concatenated, are in the set.
func PairIn(v6 bool, set string) []expr.Any {
	next := uint32(reg0 + 1)
	if v6 {
		next = reg0 + 4
	}
	return []expr.Any{address(v6, false, reg0), address(v6, true, next), &expr.Lookup{SourceRegister: reg0, SetName: set}}
}

// TranslateDestination sends packets where the map says, by the key protocol . port, or with
// byAddress protocol . address . port; its data are address . port. Others go on to the next rule.
func TranslateDestination(v6, byAddress bool, set string) []expr.Any {
	words := uint32(1)
	family := uint32(unix.NFPROTO_IPV4)
	if v6 {
		words, family = 4, unix.NFPROTO_IPV6
	}
	es := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0}}
	reg := uint32(reg0 + 1)
	if byAddress {
		es = append(es, address(v6, true, reg))
		reg += words
	}
	return append(es,
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: set},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: reg0, RegProtoMin: reg0 + words, Specified: true},
	)
}

// TranslateSource gives packets that source address.
func TranslateSource(addr []byte) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if len(addr) == 16 {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: reg0, Data: addr},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: reg0},
	}
}

// Masquerade gives packets an address of the interface that they leave by, and a port that
// nobody can guess.
func Masquerade() []expr.Any { return []expr.Any{&expr.Masq{FullyRandom: true}} }

// Drop counts and drops.
func Drop() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

// DropQuietly drops without counting.
func DropQuietly() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// Return leaves the chain.
func Return() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

// Jump goes through another chain and comes back.
func Jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// Prefix returns the elements of an interval set that hold a prefix: its first address and
// the first beyond it, if there is one.
func Prefix(addr []byte, bits int) []Element {
	first, after := make([]byte, len(addr)), make([]byte, len(addr))
	copy(first, addr)
	for i := bits; i < 8*len(addr); i++ {
		first[i/8] &^= 0x80 >> (i % 8)
	}
	copy(after, first)
	if bits == 0 {
		return []Element{{Key: first}}
	}
	carry := byte(0x80 >> ((bits - 1) % 8))
	for i := (bits - 1) / 8; i >= 0; i-- {
		sum := uint16(after[i]) + uint16(carry)
		after[i] = byte(sum)
		if sum < 256 {
			return []Element{{Key: first}, {Key: after, End: true}}
		}
		carry = 1
	}
	return []Element{{Key: first}} // up to the last address
}

// Key joins the parts of a concatenated key or value, each padded to 4 bytes.
func Key(parts ...[]byte) []byte {
	var k []byte
	for _, p := range parts {
		k = append(k, p...)
		for len(k)%4 != 0 {
			k = append(k, 0)
		}
	}
	return k
}

// Types of keys and values.
var (
	TypeAddress4 = nftables.TypeIPAddr
	TypeAddress6 = nftables.TypeIP6Addr
	TypeProtocol = nftables.TypeInetProto
	TypePort     = nftables.TypeInetService
	TypeName     = nftables.TypeIFName
)
