package seccomp

import (
	"encoding/binary"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data; arguments are little endian on all that abis lists.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

const (
	load     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	and      = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	jump     = unix.BPF_JMP | unix.BPF_JA
	ifEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ifAbove  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	ifAtOver = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	ret      = unix.BPF_RET | unix.BPF_K
)

type code []unix.SockFilter

func op(c uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: c, K: k} }

// shared stands, until the program is laid out, for a jump to body K.
const shared = ^uint16(0)

// assembler lays a program out: comparisons of architecture and number first, then the
// bodies that more than one number has. A rule with conditions for twenty calls is there
// once: the kernel takes BPF_MAXINSNS and no more.
//
// Jumps go forward only, and a comparison has to know how far. So the program is written
// from its end to its beginning, where what is jumped over is there already.
type assembler struct {
	bodies []body
	index  map[string]int // of bodies, by their code
	out    code           // backwards
}

// body is what happens to one call or more.
type body struct {
	code
	uses int // how many ranges of numbers have it
	at   int // where it is behind the comparisons, if it is there for several
}

// assemble makes the program: first the architecture, then the number.
func assemble(tables []*table) code {
	a := &assembler{index: map[string]int{}, out: make(code, 0, 1024)}
	leaves := make([][]leaf, len(tables))
	var x32 []leaf
	for i, t := range tables {
		leaves[i] = a.leaves(t)
		for _, l := range leaves[i] {
			a.bodies[l.body].uses++
		}
		if t.name == specs.ArchX32 {
			x32 = leaves[i]
		}
	}
	a.architectures(tables, leaves, x32)
	a.emit(op(load, offArch))
	slices.Reverse(a.out)
	return a.link()
}

// architectures finds the calls of the first table or of those after it.
func (a *assembler) architectures(tables []*table, leaves [][]leaf, x32 []leaf) {
	switch {
	case len(tables) == 0:
		a.emit(op(ret, unix.SECCOMP_RET_KILL_THREAD))
		return
	case tables[0].name == specs.ArchX32: // found by the numbers of x86-64
		a.architectures(tables[1:], leaves[1:], x32)
		return
	}
	t := tables[0]
	if t.name == specs.ArchX86_64 {
		// Its numbers and x32's differ in one bit only. −1 is what a tracer makes of the
		// number of a call to skip, and no call of x32.
		if x32 != nil {
			a.balance(x32)
		} else {
			a.emit(op(ret, t.fallback))
			a.branch(ifEqual, ^uint32(0), func() { a.emit(op(ret, unix.SECCOMP_RET_KILL_THREAD)) })
		}
		a.branch(ifAtOver, x32Bit, func() { a.balance(leaves[0]) })
	} else {
		a.balance(leaves[0])
	}
	a.emit(op(load, offNumber))
	a.branch(ifEqual, t.audit, func() { a.architectures(tables[1:], leaves[1:], x32) })
}

func (a *assembler) emit(in unix.SockFilter) { a.out = append(a.out, in) }

// branch goes on with what was written last if the comparison holds, and with what no
// writes if not. Both end by themselves.
func (a *assembler) branch(compare uint16, k uint32, no func()) {
	before := len(a.out)
	no()
	if n := len(a.out) - before; n <= 255 {
		a.emit(unix.SockFilter{Code: compare, Jt: uint8(n), K: k})
	} else { // too far for a conditional jump
		a.emit(op(jump, uint32(n)))
		a.emit(unix.SockFilter{Code: compare, Jf: 1, K: k})
	}
}

// link appends the bodies that are shared and makes jumps of what stands for them.
func (a *assembler) link() code {
	out, end := a.out, len(a.out)
	for pc := range end {
		if out[pc].Code != shared {
			continue
		}
		b := &a.bodies[out[pc].K]
		if b.at == 0 {
			b.at = len(out)
			out = append(out, b.code...)
		}
		out[pc] = op(jump, uint32(b.at-pc-1))
	}
	return out
}

// leaf is a range of numbers that are treated alike, from start to the next one's.
type leaf struct {
	start uint32
	body  int
}

// leaves are the ranges in their order; the first starts at 0.
func (a *assembler) leaves(t *table) []leaf {
	fallback := a.body(code{op(ret, t.fallback)})
	leaves := append(make([]leaf, 0, 256), leaf{0, fallback})
	// put says what happens from start on, and replaces what it was said to be there.
	put := func(start uint32, body int) {
		last := &leaves[len(leaves)-1]
		if last.start == start {
			last.body = body
			if n := len(leaves); n > 1 && leaves[n-2].body == body {
				leaves = leaves[:n-1]
			}
		} else if last.body != body {
			leaves = append(leaves, leaf{start, body})
		}
	}
	allow := a.body(allow)
	for rest := t.calls; len(rest) > 0; {
		nr, n := uint32(rest[0]>>32), 1
		for n < len(rest) && uint32(rest[n]>>32) == nr {
			n++
		}
		if r := t.rules[uint32(rest[0])]; len(r.conditions) == 0 && r.ret == unix.SECCOMP_RET_ALLOW {
			put(nr, allow) // as most are
		} else {
			put(nr, a.body(t.decide(rest[:n])))
		}
		put(nr+1, fallback)
		rest = rest[n:]
	}
	if t.enosys {
		put(t.newest+1, a.body(code{op(ret, unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS))}))
	}
	return leaves
}

// body returns the number of the body with that code.
func (a *assembler) body(c code) int {
	key := c.key()
	i, ok := a.index[key]
	if !ok {
		i = len(a.bodies)
		a.index[key] = i
		a.bodies = append(a.bodies, body{code: c})
	}
	return i
}

// balance makes a tree of comparisons with the number, which is in the accumulator.
func (a *assembler) balance(leaves []leaf) {
	if len(leaves) > 1 {
		mid := len(leaves) / 2
		a.balance(leaves[mid:])
		a.branch(ifAtOver, leaves[mid].start, func() { a.balance(leaves[:mid]) })
		return
	}
	b := &a.bodies[leaves[0].body]
	if len(b.code) > 1 && b.uses > 1 {
		a.emit(op(shared, uint32(leaves[0].body)))
		return
	}
	for _, in := range slices.Backward(b.code) {
		a.emit(in)
	}
}

// key is equal for equal code.
func (c code) key() string {
	b := make([]byte, 0, 8*len(c))
	for _, f := range c {
		b = append(binary.LittleEndian.AppendUint16(b, f.Code), f.Jt, f.Jf)
		b = binary.LittleEndian.AppendUint32(b, f.K)
	}
	return string(b)
}

var allow = code{op(ret, unix.SECCOMP_RET_ALLOW)} // what most calls come to

// decide tries the rules of one call in their order.
func (t *table) decide(calls []uint64) code {
	// One without conditions is the only one that counts.
	for _, c := range calls {
		if r := t.rules[uint32(c)]; len(r.conditions) == 0 {
			return code{op(ret, r.ret)}
		}
	}
	var out code
	for _, c := range calls {
		var body code
		r := t.rules[uint32(c)]
		// From the last condition back: a comparison that fails jumps over all of the rule.
		for i := len(r.conditions) - 1; i >= 0; i-- {
			body = append(t.compare(r.conditions[i], len(body)+1), body...)
		}
		out = append(append(out, body...), op(ret, r.ret))
	}
	return append(out, op(ret, t.fallback))
}

// compare goes on after its last instruction if the condition holds, and skips rest more
// instructions if it does not. Words are compared from the upper to the lower.
func (t *table) compare(a specs.LinuxSeccompArg, rest int) code {
	value, mask := a.Value, ^uint64(0)
	if a.Op == specs.OpMaskedEqual {
		mask = a.Value
		value = a.ValueTwo & mask
	}
	lo, hi := uint32(value), uint32(value>>32)
	at := uint32(offArgs + 8*a.Index)

	// The lower words decide; yes and no are where to go, counted from behind this part.
	low := code{op(load, at)}
	if uint32(mask) != ^uint32(0) {
		low = append(low, op(and, uint32(mask)))
	}
	fails := uint8(rest)
	switch a.Op {
	case specs.OpEqualTo, specs.OpMaskedEqual:
		low = append(low, unix.SockFilter{Code: ifEqual, Jf: fails, K: lo})
	case specs.OpNotEqual:
		low = append(low, unix.SockFilter{Code: ifEqual, Jt: fails, K: lo})
	case specs.OpGreaterThan:
		low = append(low, unix.SockFilter{Code: ifAbove, Jf: fails, K: lo})
	case specs.OpGreaterEqual:
		low = append(low, unix.SockFilter{Code: ifAtOver, Jf: fails, K: lo})
	case specs.OpLessThan:
		low = append(low, unix.SockFilter{Code: ifAtOver, Jt: fails, K: lo})
	case specs.OpLessEqual:
		low = append(low, unix.SockFilter{Code: ifAbove, Jt: fails, K: lo})
	}
	if t.narrow {
		return low // there is no upper word
	}

	holds := uint8(len(low))
	fails = uint8(len(low) + rest)
	high := code{op(load, at+4)}
	if uint32(mask>>32) != ^uint32(0) {
		high = append(high, op(and, uint32(mask>>32)))
	}
	switch a.Op {
	case specs.OpEqualTo, specs.OpMaskedEqual:
		high = append(high, unix.SockFilter{Code: ifEqual, Jf: fails, K: hi})
	case specs.OpNotEqual:
		high = append(high, unix.SockFilter{Code: ifEqual, Jf: holds, K: hi})
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		high = append(high, unix.SockFilter{Code: ifAbove, Jt: holds + 1, K: hi}, unix.SockFilter{Code: ifEqual, Jf: fails, K: hi})
	case specs.OpLessThan, specs.OpLessEqual:
		high = append(high, unix.SockFilter{Code: ifAbove, Jt: fails + 1, K: hi}, unix.SockFilter{Code: ifEqual, Jf: holds, K: hi})
	}
	return append(high, low...)
}
