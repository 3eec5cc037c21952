package cgroup

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func itoa(n int) string { return strconv.Itoa(n) }

func dev(allow bool, typ string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	d := specs.LinuxDeviceCgroup{Allow: allow, Type: typ, Access: access}
	if major >= 0 {
		d.Major = &major
	}
	if minor >= 0 {
		d.Minor = &minor
	}
	return d
}

// What containers get: everything denied, then what is harmless allowed.
var usual = []specs.LinuxDeviceCgroup{
	dev(false, "a", -1, -1, "rwm"),
	dev(true, "c", -1, -1, "m"), dev(true, "b", -1, -1, "m"),
	dev(true, "c", 1, 3, "rwm"), dev(true, "c", 1, 5, "rwm"), dev(true, "c", 1, 7, "rwm"), dev(true, "c", 1, 8, "rwm"),
	dev(true, "c", 1, 9, "rwm"), dev(true, "c", 5, 0, "rwm"), dev(true, "c", 5, 1, "rwm"), dev(true, "c", 5, 2, "rwm"),
	dev(true, "c", 136, -1, "rwm"), dev(true, "c", 10, 200, "rwm"),
}

func TestDevices(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		g, err := h.Create(root(t, h), &specs.LinuxResources{Devices: usual})
		if err != nil {
			t.Fatal(err)
		}
		c := spawn(t, g, "open")
		ask := func(path string) string {
			t.Helper()
			if _, err := c.in.WriteString(path + "\n"); err != nil {
				t.Fatal(err)
			}
			return c.line(t)
		}
		const yes, no = "<nil>", "operation not permitted"
		check := func(what string, want map[string]string) {
			t.Helper()
			for path, w := range want {
				if got := ask(path); got != w {
					t.Errorf("%s: %s: %s, want %s", what, path, got, w)
				}
			}
		}
		check("usual", map[string]string{"/dev/null rw": yes, "/dev/zero": yes, "/dev/urandom": yes, "/dev/kmsg": no})
		update := func(list ...specs.LinuxDeviceCgroup) {
			t.Helper()
			if err := g.Update(&specs.LinuxResources{Devices: list}); err != nil {
				t.Fatal(err)
			}
		}
		update(usual...) // the same once more
		check("again", map[string]string{"/dev/null rw": yes, "/dev/kmsg": no})
		update(append(usual, dev(false, "c", 1, 5, "w"), dev(true, "c", 1, 11, "r"))...)
		check("changed", map[string]string{"/dev/null rw": yes, "/dev/zero": yes, "/dev/zero w": no, "/dev/zero rw": no, "/dev/kmsg": yes, "/dev/kmsg w": no})
		update(dev(true, "a", -1, -1, ""), dev(false, "c", 1, 3, "w"))
		check("all but one", map[string]string{"/dev/null": yes, "/dev/null w": no, "/dev/kmsg": yes})
		update(dev(true, "a", -1, -1, "rwm"))
		check("all", map[string]string{"/dev/null rw": yes, "/dev/kmsg": yes, "/dev/zero rw": yes})
		if h.deviceByBPF(nil) {
			// An exception within an exception, which v1 cannot say.
			update(dev(true, "c", 1, -1, "rw"), dev(false, "c", 1, 3, "w"), dev(true, "a", 1, 11, "r"), dev(false, "c", 1, 11, "w"))
			check("nested", map[string]string{"/dev/null": yes, "/dev/null rw": no, "/dev/zero rw": yes, "/dev/kmsg": yes, "/dev/kmsg w": no})
		} else {
			err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{dev(true, "c", 1, -1, "rw"), dev(false, "c", 1, 3, "w")}})
			if !errors.Is(err, errs.Unsupported) {
				t.Errorf("nested: %v", err)
			}
		}
		update([]specs.LinuxDeviceCgroup{}...)
		check("nil leaves alone", map[string]string{"/dev/null rw": ask("/dev/null rw")})
		if err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{}}); err != nil {
			t.Fatal(err)
		}
		check("none", map[string]string{"/dev/null": no, "/dev/zero": no})
	})
}

// The program's answers are those of a reference that goes through the rules bit by bit.
// It is run here by a small interpreter of its few instructions; that the kernel takes
// it and means the same is what TestDevices shows.
func TestDeviceProgram(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(n ...int64) int64 { return n[r.IntN(len(n))] }
	for range 3000 {
		var list []specs.LinuxDeviceCgroup
		for range r.IntN(8) {
			list = append(list, dev(r.IntN(2) == 0, []string{"a", "b", "c", ""}[r.IntN(4)], pick(-1, 1, 2), pick(-1, 1, 2),
				[]string{"", "r", "w", "m", "rw", "rwm"}[r.IntN(6)]))
		}
		rules, err := normalize(list)
		if err != nil {
			t.Fatal(err)
		}
		prog := rules.compile()
		for typ := range 2 {
			for major := int64(1); major < 4; major++ {
				for minor := int64(1); minor < 4; minor++ {
					for access := 1; access < 8; access++ {
						want := reference(list, typ+1, major, minor, access)
						if got := interpret(t, prog, uint64(access<<16|typ+1), uint64(major), uint64(minor)); got != want {
							t.Fatalf("type %d, %d:%d access %d: %v, want %v\n%+v", typ+1, major, minor, access, got, want, list)
						}
						if rules.v1Error == nil {
							if got := rules.v1(device{typ + 1, major, minor}, access); got != want {
								t.Fatalf("v1: type %d, %d:%d access %d: %v, want %v\n%+v\n%+v", typ+1, major, minor, access, got, want, list, rules)
							}
						}
					}
				}
			}
		}
	}
}

func reference(list []specs.LinuxDeviceCgroup, typ int, major, minor int64, access int) bool {
	for bit := 1; bit < 8; bit <<= 1 {
		if access&bit == 0 {
			continue
		}
		allowed := false
		for _, d := range list {
			bits, _ := parseAccess(d.Access)
			typeOK := d.Type == "" || d.Type == "a" || d.Type == string(" bc"[typ])
			if typeOK && bits&bit != 0 && (d.Major == nil || *d.Major == major) && (d.Minor == nil || *d.Minor == minor) {
				allowed = d.Allow
			}
		}
		if !allowed {
			return false
		}
	}
	return true
}

// v1 is what the v1 controller answers to a default with exceptions.
func (r *deviceRules) v1(d device, access int) bool {
	bits := 0
	for e, b := range r.exceptions {
		if e.covers(d) {
			bits |= b
		}
	}
	if r.allowAll {
		return bits&access == 0
	}
	return access&^bits == 0
}

func interpret(t *testing.T, prog []insn, ctx ...uint64) bool {
	var reg [11]uint64
	for pc := 0; ; pc++ {
		i := prog[pc]
		switch i.code {
		case opLoadWord:
			reg[i.dst] = ctx[i.off/4]
		case opMovReg:
			reg[i.dst] = reg[i.src]
		case opAndImm:
			reg[i.dst] &= uint64(uint32(i.imm))
		case opShrImm:
			reg[i.dst] >>= i.imm
		case opMovImm:
			reg[i.dst] = uint64(i.imm)
		case opJump:
			pc += int(i.off)
		case opJumpEQ:
			if reg[i.dst] == uint64(i.imm) {
				pc += int(i.off)
			}
		case opJumpNE:
			if reg[i.dst] != uint64(i.imm) {
				pc += int(i.off)
			}
		case opExit:
			return reg[0] == 1
		default:
			t.Fatalf("instruction %#x", i.code)
		}
	}
}
