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

// branch runs yes if the comparison holds and no otherwise. Both end by themselves.
func branch(compare uint16, k uint32, no, yes code) code {
	out := make(code, 0, len(no)+len(yes)+2)
	if len(no) <= 255 {
		out = append(out, unix.SockFilter{Code: compare, Jt: uint8(len(no)), K: k})
	} else { // too far for a conditional jump
		out = append(out, unix.SockFilter{Code: compare, Jf: 1, K: k}, op(jump, uint32(len(no))))
	}
	return append(append(out, no...), yes...)
}

// shared stands, until the program is laid out, for a jump to body K.
const shared = ^uint16(0)

// assembler lays a program out: comparisons of architecture and number first, then the
// bodies that more than one number has. A rule with conditions for twenty calls is there
// once: the kernel takes BPF_MAXINSNS and no more.
type assembler struct {
	uses   map[string]int // of a body of more than an instruction, by its code
	index  map[string]int
	bodies []code
}

// assemble makes the program: first the architecture, then the number.
func assemble(tables []*table) code {
	a := &assembler{uses: map[string]int{}, index: map[string]int{}}
	leaves := make([][]leaf, len(tables))
	x32 := -1
	for i, t := range tables {
		leaves[i] = t.leaves()
		for _, l := range leaves[i] {
			if len(l.code) > 1 {
				a.uses[l.code.key()]++
			}
		}
		if t.name == specs.ArchX32 {
			x32 = i
		}
	}
	kill := code{op(ret, unix.SECCOMP_RET_KILL_THREAD)}
	out := kill // no architecture matched
	for i, t := range slices.Backward(tables) {
		if i == x32 {
			continue
		}
		body := code{op(load, offNumber)}
		if t.name == specs.ArchX86_64 {
			// Its numbers and x32's differ in one bit only. −1 is what a tracer makes of the
			// number of a call to skip, and no call of x32.
			foreign := branch(ifEqual, ^uint32(0), kill, code{op(ret, t.fallback)})
			if x32 >= 0 {
				foreign = a.balance(leaves[x32])
			}
			body = append(body, branch(ifAtOver, x32Bit, a.balance(leaves[i]), foreign)...)
		} else {
			body = append(body, a.balance(leaves[i])...)
		}
		out = branch(ifEqual, t.audit, out, body)
	}
	return a.link(append(code{op(load, offArch)}, out...))
}

// link appends the bodies and makes jumps of what stands for them.
func (a *assembler) link(out code) code {
	end := len(out)
	at := make([]int, len(a.bodies))
	for i, b := range a.bodies {
		at[i] = len(out)
		out = append(out, b...)
	}
	for pc := range out[:end] {
		if out[pc].Code == shared {
			out[pc] = op(jump, uint32(at[out[pc].K]-pc-1))
		}
	}
	return out
}

// leaf is a range of numbers that are treated alike, from start to the next one's.
type leaf struct {
	start uint32
	code  code
}

// leaves are the ranges in their order; the first starts at 0.
func (t *table) leaves() []leaf {
	fallback := code{op(ret, t.fallback)}
	leaves := []leaf{{0, fallback}}
	// put says what happens from start on, and replaces what it was said to be there.
	put := func(start uint32, c code) {
		last := &leaves[len(leaves)-1]
		if last.start == start {
			last.code = c
			if n := len(leaves); n > 1 && slices.Equal(leaves[n-2].code, c) {
				leaves = leaves[:n-1]
			}
		} else if !slices.Equal(last.code, c) {
			leaves = append(leaves, leaf{start, c})
		}
	}
	for rest := t.rules; len(rest) > 0; {
		nr, n := rest[0].nr, 1
		for n < len(rest) && rest[n].nr == nr {
			n++
		}
		put(nr, t.decide(rest[:n]))
		put(nr+1, fallback)
		rest = rest[n:]
	}
	if t.enosys {
		put(t.newest+1, code{op(ret, unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS))})
	}
	return leaves
}

// balance makes a tree of comparisons with the number, which is in the accumulator.
func (a *assembler) balance(leaves []leaf) code {
	if len(leaves) > 1 {
		mid := len(leaves) / 2
		return branch(ifAtOver, leaves[mid].start, a.balance(leaves[:mid]), a.balance(leaves[mid:]))
	}
	c := leaves[0].code
	if len(c) == 1 {
		return c
	}
	key := c.key()
	if a.uses[key] == 1 {
		return c
	}
	i, ok := a.index[key]
	if !ok {
		i = len(a.bodies)
		a.index[key] = i
		a.bodies = append(a.bodies, c)
	}
	return code{op(shared, uint32(i))}
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
func (t *table) decide(rules []numbered) code {
	// One without conditions is the only one that counts.
	if i := slices.IndexFunc(rules, func(r numbered) bool { return len(r.conditions) == 0 }); i >= 0 {
		if r := rules[i].ret; r != unix.SECCOMP_RET_ALLOW {
			return code{op(ret, r)}
		}
		return allow
	}
	var out code
	for _, r := range rules {
		var body code
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
