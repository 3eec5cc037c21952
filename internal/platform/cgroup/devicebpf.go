package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// On cgroup2 devices are guarded by a BPF program that is attached to the group and
// asked at every open(2) and mknod(2) of a device (BPF_PROG_TYPE_CGROUP_DEVICE, Linux
// 4.15). The programs are some fifty instructions and needed by the keeper, which has
// to stay small, so they are put together and loaded here with bare bpf(2).

const programName = "orlop_devices" // tells ours from those of others, such as systemd's

// insn is struct bpf_insn.
type insn struct {
	code     uint8
	dst, src uint8 // four bits each in the kernel's layout
	off      int16
	imm      int32
}

// Opcodes, of which the kernel's Documentation/bpf/standardization/instruction-set.rst
// has the table.
const (
	opLoadWord = 0x61 // dst = *(u32 *)(src + off)
	opMovReg   = 0xbc // 32 bit
	opAndImm   = 0x54 // 32 bit
	opShrImm   = 0x74 // 32 bit
	opMovImm   = 0xb7
	opJump     = 0x05
	opJumpEQ   = 0x15
	opJumpNE   = 0x55
	opExit     = 0x95
)

// Registers of the program.
const ctx, typ, access, major, minor = 1, 2, 3, 4, 5

// compile makes the program: a tree of comparisons by type, major and minor number, whose
// leaves tell what of the access that is asked for is not allowed. Devices that no rule tells
// apart have a leaf in common, and so have as a rule those that are allowed the same. A chain of rules would be shorter; but the kernel checks
// every path through a program before it loads it, which for a chain grows with the
// square of the rules, and takes longer than all else of making a group.
func (r *deviceRules) compile() []insn {
	prog := []insn{ // struct bpf_cgroup_dev_ctx: access<<16|type, major, minor
		{code: opLoadWord, dst: typ, src: ctx, off: 0},
		{code: opMovReg, dst: access, src: typ},
		{code: opShrImm, dst: access, imm: 16},
		{code: opAndImm, dst: typ, imm: 0xffff},
		{code: opLoadWord, dst: major, src: ctx, off: 4},
		{code: opLoadWord, dst: minor, src: ctx, off: 8},
	}
	for _, t := range []int{typeBlock, typeChar} {
		prog = append(prog, when(typ, int64(t), r.ofType(t))...)
	}
	return append(prog, leaf(0)...)
}

// when runs what ends by itself if the register has that value, and goes on if not.
func when(register uint8, value int64, block []insn) []insn {
	return append([]insn{{code: opJumpNE, dst: register, off: int16(len(block)), imm: int32(value)}}, block...)
}

// choice is what is run for some numbers.
type choice struct {
	numbers []int64
	block   []insn
}

// choose runs for each number what block returns, which ends by itself, and goes on with all
// others. Numbers for which that is what is run for all others are left out.
func choose(numbers []int64, others []insn, block func(int64) []insn) (list []choice) {
	for _, n := range numbers {
		b := block(n)
		if slices.Equal(b, others) {
			continue
		}
		i := slices.IndexFunc(list, func(c choice) bool { return slices.Equal(c.block, b) })
		if i < 0 {
			i, list = len(list), append(list, choice{block: b})
		}
		list[i].numbers = append(list[i].numbers, n)
	}
	return list
}

// code compares the register with the numbers.
func (c choice) code(register uint8) (code []insn) {
	for i, n := range c.numbers[1:] {
		code = append(code, insn{code: opJumpEQ, dst: register, off: int16(len(c.numbers) - 1 - i), imm: int32(n)})
	}
	return append(code, when(register, c.numbers[0], c.block)...)
}

// leaf ends the program: what is not in allowed is denied.
func leaf(allowed int) []insn {
	deny, allow := []insn{{code: opMovImm, imm: 0}, {code: opExit}}, []insn{{code: opMovImm, imm: 1}, {code: opExit}}
	switch allowed {
	case 0:
		return deny
	case mayAll:
		return allow
	}
	return append(append([]insn{{code: opAndImm, dst: access, imm: int32(mayAll &^ allowed)}, {code: opJumpNE, dst: access, off: 2, imm: 0}}, allow...), deny...)
}

// ofType is the tree for a type. Numbers that no rule names are other.
func (r *deviceRules) ofType(t int) []insn {
	const other = -2
	last := leaf(r.allowed(device{t, other, other}))
	// Until the tree is put together, a jump to where it ends with last.
	end := []insn{{code: opJump}}
	of := func(ma int64) (block []insn) {
		minors := r.named(func(d device) (int64, bool) { return d.minor, d.typ == t && (d.major == anyNumber || d.major == ma) })
		others := leaf(r.allowed(device{t, ma, other}))
		for _, c := range choose(minors, others, func(mi int64) []insn { return leaf(r.allowed(device{t, ma, mi})) }) {
			block = append(block, c.code(minor)...)
		}
		if slices.Equal(others, last) {
			return append(block, end...)
		}
		return append(block, others...)
	}
	majors := r.named(func(d device) (int64, bool) { return d.major, d.typ == t })
	others := of(other)
	tree := append(others[:len(others)-1:len(others)-1], last...)
	for _, c := range slices.Backward(choose(majors, others, of)) {
		block := c.code(major)
		if n := len(block) - 1; block[n].code == opJump {
			block[n].off = int16(len(tree) - len(last))
		}
		tree = append(block, tree...)
	}
	return tree
}

// named lists the numbers that rules name, each once, in order.
func (r *deviceRules) named(number func(device) (n int64, counts bool)) (list []int64) {
	for _, rule := range r.rules {
		if n, counts := number(rule.device); counts && n != anyNumber {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// allowed is what the rules allow of a device: for each kind of access the last that mentions
// it counts.
func (r *deviceRules) allowed(d device) (bits int) {
	for _, rule := range r.rules {
		if !rule.covers(d) {
			continue
		}
		if rule.allow {
			bits |= rule.access
		} else {
			bits &^= rule.access
		}
	}
	return bits
}

func encode(prog []insn) []byte {
	b := make([]byte, 0, 8*len(prog))
	for _, i := range prog {
		b = append(b, i.code, i.dst|i.src<<4) // little endian, as amd64 and arm64 are
		b = binary.LittleEndian.AppendUint16(b, uint16(i.off))
		b = binary.LittleEndian.AppendUint32(b, uint32(i.imm))
	}
	return b
}

// programs keeps loaded programs by their instructions: nearly all containers have the
// same rules, and loading is most of the cost.
type programs struct {
	mu     sync.Mutex
	loaded map[string]*program
	order  []string
}

type program struct {
	fd int
	id uint32
}

const maxPrograms = 32

// with calls f with the loaded program for code; the program is kept while f runs.
func (p *programs) with(code []byte, f func(*program) error) error {
	key := string(code)
	p.mu.Lock()
	defer p.mu.Unlock()
	prog := p.loaded[key]
	if prog == nil {
		fd, err := loadProgram(code)
		if err != nil {
			return err
		}
		info, err := programInfo(fd)
		if err != nil {
			unix.Close(fd)
			return err
		}
		prog = &program{fd, info.id}
		if p.loaded == nil {
			p.loaded = map[string]*program{}
		}
		if len(p.order) == maxPrograms {
			unix.Close(p.loaded[p.order[0]].fd) // attached ones live on in the kernel
			delete(p.loaded, p.order[0])
			p.order = p.order[1:]
		}
		p.loaded[key], p.order = prog, append(p.order, key)
	}
	return f(prog)
}

// set makes r what guards the group at dir. While an old program is replaced both are
// there, and an access needs the consent of both.
func (p *programs) set(dir string, r *deviceRules) error {
	fd, err := openat(dir, unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("guard devices of %s: %w", dir, err)
	}
	defer unix.Close(fd)
	old, err := ours(fd)
	if err != nil {
		return fmt.Errorf("guard devices of %s: %w", dir, err)
	}
	defer func() {
		for _, o := range old {
			unix.Close(o.fd)
		}
	}()
	var keep uint32
	if !r.everything() {
		err := p.with(encode(r.compile()), func(prog *program) error {
			keep = prog.id
			for _, o := range old {
				if o.id == prog.id {
					return nil
				}
			}
			return bpf(bpfProgAttach, &attachAttr{target: uint32(fd), prog: uint32(prog.fd), typ: attachDevice, flags: allowMulti})
		})
		if err != nil {
			return bpfError(fmt.Errorf("guard devices of %s: %w", dir, err))
		}
	}
	for _, o := range old {
		if o.id == keep {
			continue
		}
		if err := bpf(bpfProgDetach, &attachAttr{target: uint32(fd), prog: uint32(o.fd), typ: attachDevice}); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("take the old device program off %s: %w", dir, err)
		}
	}
	return nil
}

// ours returns those of our programs that are attached to the group itself, opened.
func ours(cgroup int) (list []program, err error) {
	ids := make([]uint32, 64) // the kernel's own limit of programs on a group
	q := queryAttr{target: uint32(cgroup), typ: attachDevice, ids: unsafe.Pointer(&ids[0]), count: uint32(len(ids))}
	err = bpf(bpfProgQuery, &q)
	if err != nil {
		return nil, bpfError(fmt.Errorf("list device programs: %w", err))
	}
	defer func() {
		if err != nil {
			for _, o := range list {
				unix.Close(o.fd)
			}
		}
	}()
	for _, id := range ids[:min(int(q.count), len(ids))] {
		fd, err := bpfFD(bpfProgGetFDByID, &idAttr{id: id})
		if errors.Is(err, unix.ENOENT) {
			continue // gone meanwhile
		}
		if err != nil {
			return list, fmt.Errorf("open device program %d: %w", id, err)
		}
		info, err := programInfo(fd)
		if err != nil || string(info.name[:len(programName)]) != programName {
			unix.Close(fd)
			if err != nil {
				return list, err
			}
			continue
		}
		list = append(list, program{fd, id})
	}
	return list, nil
}

// bpfRefused tells why device programs cannot be had, nil where they can. It asks the
// kernel once: it loads one, that of the rules if they are given, which is then loaded for
// the group, and lists those of the root group.
func (h *Host) bpfRefused(wanted *deviceRules) error {
	h.probeBPF.Do(func() {
		err := errors.ErrUnsupported
		if wanted != nil && !wanted.everything() {
			err = h.programs.with(encode(wanted.compile()), func(*program) error { return nil })
		}
		if err != nil { // rules can be too many, which is not the host's fault
			var fd int
			if fd, err = loadProgram(encode((&deviceRules{}).compile())); err != nil {
				h.noBPF = err
				return
			}
			unix.Close(fd)
		}
		dir, err := openat(h.unified.mount, unix.O_DIRECTORY)
		if err != nil {
			h.noBPF = err
			return
		}
		defer unix.Close(dir)
		list, err := ours(dir)
		for _, o := range list {
			unix.Close(o.fd)
		}
		h.noBPF = err
	})
	return h.noBPF
}

func bpfError(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return errs.New(errs.PermissionDenied, "%w; it takes CAP_BPF and CAP_NET_ADMIN, or root", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return errs.New(errs.Unsupported, "%w; the kernel needs CONFIG_CGROUP_BPF", err)
	}
	return err
}

// The few commands of bpf(2) that are used, with the beginnings of union bpf_attr that
// they read; the kernel takes what is not given as zero. Addresses are 64 bits in
// them, as pointers are wherever Orlop runs, and are kept as pointers so that Go moves
// nothing that the kernel is reading.
const (
	bpfProgLoad      = 5
	bpfProgAttach    = 8
	bpfProgDetach    = 9
	bpfProgGetFDByID = 13
	bpfObjGetInfo    = 15
	bpfProgQuery     = 16

	progTypeDevice = 15 // BPF_PROG_TYPE_CGROUP_DEVICE
	attachDevice   = 6  // BPF_CGROUP_DEVICE
	allowMulti     = 2  // BPF_F_ALLOW_MULTI
)

type loadAttr struct {
	typ, count     uint32
	insns, license unsafe.Pointer
	_, _           uint32         // log level, log size
	_              unsafe.Pointer // log
	_, _           uint32         // kernel version, flags
	name           [16]byte
}

type attachAttr struct{ target, prog, typ, flags uint32 }

// queryAttr is whole: from Linux 6.17 on the kernel writes the revision back into the
// last field, whatever size it is told.
type queryAttr struct {
	target, typ, _, _ uint32 // query flags, attach flags
	ids               unsafe.Pointer
	count, _          uint32
	_                 [3]uint64 // attach flags of each, link ids, their attach flags
	_                 uint64    // revision
}

type idAttr struct{ id, _, _ uint32 } // next id, flags

type infoAttr struct {
	fd, size uint32
	info     unsafe.Pointer
}

// progInfo is the beginning of struct bpf_prog_info.
type progInfo struct {
	typ, id        uint32
	tag            [8]byte
	jited, xlated  uint32
	jitedP, xlateP uint64
	loadTime       uint64
	uid, maps      uint32
	mapIDs         uint64
	name           [16]byte
}

func bpfFD[T any](cmd uintptr, attr *T) (int, error) {
	for {
		fd, _, e := unix.Syscall(unix.SYS_BPF, cmd, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
		switch e {
		case 0:
			return int(fd), nil
		case unix.EINTR, unix.EAGAIN: // EAGAIN: the verifier was interrupted by a signal
			continue
		}
		return -1, e
	}
}

func bpf[T any](cmd uintptr, attr *T) error {
	_, err := bpfFD(cmd, attr)
	return err
}

func loadProgram(code []byte) (int, error) {
	if n := len(code) / 8; n > math.MaxInt16 {
		return -1, errs.New(errs.Invalid, "devices: the rules make a program of %d instructions, and its jumps reach over %d; give fewer rules", n, math.MaxInt16)
	}
	license := []byte("Apache-2.0\x00")
	a := loadAttr{typ: progTypeDevice, count: uint32(len(code) / 8), insns: unsafe.Pointer(&code[0]), license: unsafe.Pointer(&license[0])}
	copy(a.name[:], programName)
	fd, err := bpfFD(bpfProgLoad, &a)
	if err != nil {
		return -1, bpfError(fmt.Errorf("load device program: %w", err))
	}
	return fd, nil
}

func programInfo(fd int) (progInfo, error) {
	var i progInfo
	err := bpf(bpfObjGetInfo, &infoAttr{fd: uint32(fd), size: uint32(unsafe.Sizeof(i)), info: unsafe.Pointer(&i)})
	if err != nil {
		return i, fmt.Errorf("read about device program: %w", err)
	}
	return i, nil
}
