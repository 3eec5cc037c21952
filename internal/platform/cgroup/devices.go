package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/guard"
)

// devicesGuard: a group's devices are those that its rules allow.
var devicesGuard = guard.New("cgroup.devices")

// Access bits and device types as the kernel numbers them (bpf.h, BPF_DEVCG_*).
const (
	mayMknod = 1
	mayRead  = 2
	mayWrite = 4
	mayAll   = mayMknod | mayRead | mayWrite

	typeBlock = 1
	typeChar  = 2
)

const anyNumber = -1

// device is one kind of device, of which numbers may be anyNumber.
type device struct {
	typ          int // typeBlock, typeChar
	major, minor int64
}

// covers tells whether every device that o means is one that d means.
func (d device) covers(o device) bool {
	return d.typ == o.typ && (d.major == anyNumber || d.major == o.major) && (d.minor == anyNumber || d.minor == o.minor)
}

func (d device) overlaps(o device) bool {
	return d.typ == o.typ && (d.major == anyNumber || o.major == anyNumber || d.major == o.major) &&
		(d.minor == anyNumber || o.minor == anyNumber || d.minor == o.minor)
}

// String writes it as v1's files do: "c 1:3", "b *:*".
func (d device) String() string {
	n := func(v int64) string {
		if v == anyNumber {
			return "*"
		}
		return strconv.FormatInt(v, 10)
	}
	return string(" bc"[d.typ]) + " " + n(d.major) + ":" + n(d.minor)
}

type deviceRule struct {
	device
	access int
	allow  bool
}

// deviceRules are the specification's rules in two forms. What no rule mentions is
// denied; of two that mention the same access to the same device, the later counts.
type deviceRules struct {
	rules []deviceRule // in order; "all types" is one for block and one for char

	// v1 knows a default and exceptions from it, and so cannot say everything that an
	// ordered list can: v1Error names the first rule that it cannot.
	allowAll   bool
	exceptions map[device]int
	v1Error    error
}

// everything tells whether there is nothing to restrict.
func (r *deviceRules) everything() bool {
	return r.allowAll && len(r.exceptions) == 0 && r.v1Error == nil
}

func normalize(list []specs.LinuxDeviceCgroup) (*deviceRules, error) {
	r := &deviceRules{exceptions: map[device]int{}}
	for i, s := range list {
		access, err := parseAccess(s.Access)
		if err != nil {
			return nil, errs.New(errs.Invalid, "devices[%d]: %w", i, err)
		}
		d := device{major: anyNumber, minor: anyNumber}
		for _, n := range []struct {
			from *int64
			to   *int64
			name string
		}{{s.Major, &d.major, "major"}, {s.Minor, &d.minor, "minor"}} {
			if n.from == nil || *n.from == -1 {
				continue
			}
			if *n.from < 0 || *n.from >= 1<<31 {
				return nil, errs.New(errs.Invalid, "devices[%d]: %s number %d: use 0 to %d, or -1 for any", i, n.name, *n.from, 1<<31-1)
			}
			*n.to = *n.from
		}
		var types []int
		switch s.Type {
		case "c", "u":
			types = []int{typeChar}
		case "b":
			types = []int{typeBlock}
		case "a", "":
			types = []int{typeBlock, typeChar}
			if d.major == anyNumber && d.minor == anyNumber && access == mayAll {
				r.rules, r.allowAll, r.v1Error = nil, s.Allow, nil // nothing before it counts
				clear(r.exceptions)
			}
		default:
			return nil, errs.New(errs.Invalid, "devices[%d]: type %q: use a, b or c", i, s.Type)
		}
		for _, t := range types {
			d.typ = t
			r.rules = append(r.rules, deviceRule{d, access, s.Allow})
			r.except(i, deviceRule{d, access, s.Allow})
		}
	}
	return r, nil
}

// except brings a rule into v1's default and exceptions.
func (r *deviceRules) except(index int, rule deviceRule) {
	if rule.allow != r.allowAll {
		r.exceptions[rule.device] |= rule.access
		return
	}
	for d, access := range r.exceptions {
		switch {
		case access&rule.access == 0 || !rule.overlaps(d):
		case rule.covers(d):
			if access &^= rule.access; access == 0 {
				delete(r.exceptions, d)
			} else {
				r.exceptions[d] = access
			}
		case r.v1Error == nil:
			r.v1Error = errs.New(errs.Unsupported,
				"devices[%d]: the v1 devices controller cannot make %s an exception from %s; write rules that do not overlap, or use a cgroup v2 host",
				index, rule.device, d)
		}
	}
}

func parseAccess(s string) (int, error) {
	if s == "" {
		return mayAll, nil
	}
	bits := 0
	for _, c := range s {
		switch c {
		case 'r':
			bits |= mayRead
		case 'w':
			bits |= mayWrite
		case 'm':
			bits |= mayMknod
		default:
			return 0, fmt.Errorf("access %q: use letters of rwm", s)
		}
	}
	return bits, nil
}

func accessString(bits int) string {
	s := ""
	for _, c := range []struct {
		bit int
		s   string
	}{{mayRead, "r"}, {mayWrite, "w"}, {mayMknod, "m"}} {
		if bits&c.bit != 0 {
			s += c.s
		}
	}
	return s
}

// deviceByBPF tells which of the two ways there are the host takes. On Hybrid a program
// on the cgroup2 group is preferred: it costs one system call where the v1 hierarchy
// costs a directory, a move and a write for every rule. What the rules are, if it is known
// yet, spares the kernel a program that is loaded to ask it.
func (h *Host) deviceByBPF(r *deviceRules) bool {
	switch h.layout.Mode {
	case V2:
		return true
	case Hybrid:
		return h.bpfRefused(r) == nil
	}
	return false
}

func (g *Group) setDevices(r *deviceRules) error {
	if g.host.deviceByBPF(r) {
		return g.host.programs.set(g.unifiedDir(), r)
	}
	return setDevicesV1(g.dir("devices"), r)
}

// setDevicesV1 writes only what differs from what the group has, so that a running
// process never finds one of its devices denied for a moment.
func setDevicesV1(dir string, r *deviceRules) error {
	if r.v1Error != nil {
		return r.v1Error
	}
	now, err := read(dir, "devices.list")
	if err != nil {
		return refusedMissing(dir, "devices.list", err)
	}
	open := strings.HasPrefix(now, "a ")
	if r.allowAll {
		// Exceptions from allowing everything are not shown by the kernel: start anew.
		if err := write(dir, "devices.allow", "a"); err != nil {
			return err
		}
		return writeRules(dir, "devices.deny", r.exceptions)
	}
	have := map[device]int{}
	if open {
		if err := write(dir, "devices.deny", "a"); err != nil {
			return err
		}
	} else if have, err = parseDevicesList(now); err != nil {
		return err
	}
	deny, allow := map[device]int{}, map[device]int{}
	for d, bits := range have {
		if extra := bits &^ r.exceptions[d]; extra != 0 {
			deny[d] = extra
		}
	}
	for d, bits := range r.exceptions {
		if missing := bits &^ have[d]; missing != 0 {
			allow[d] = missing
		}
	}
	if err := writeRules(dir, "devices.deny", deny); err != nil {
		return err
	}
	return writeRules(dir, "devices.allow", allow)
}

func parseDevicesList(s string) (map[device]int, error) {
	m := map[device]int{}
	for line := range strings.SplitSeq(s, "\n") {
		if line == "" {
			continue
		}
		var typ byte
		var major, minor, access string
		numbers := strings.Fields(line)
		if len(numbers) == 3 && len(numbers[0]) == 1 {
			typ, access = numbers[0][0], numbers[2]
			major, minor, _ = strings.Cut(numbers[1], ":")
		}
		d := device{typ: strings.IndexByte(" bc", typ), major: anyNumber, minor: anyNumber}
		var err1, err2 error
		if major != "*" {
			d.major, err1 = strconv.ParseInt(major, 10, 64)
		}
		if minor != "*" {
			d.minor, err2 = strconv.ParseInt(minor, 10, 64)
		}
		bits, err3 := parseAccess(access)
		if d.typ < 1 || errors.Join(err1, err2, err3) != nil {
			return nil, errs.New(errs.Corrupt, "cgroup: unexpected line %q in devices.list", line)
		}
		m[d] |= bits
	}
	return m, nil
}

func writeRules(dir, file string, rules map[device]int) error {
	order := func(a, b device) int {
		return cmp.Or(cmp.Compare(a.typ, b.typ), cmp.Compare(a.major, b.major), cmp.Compare(a.minor, b.minor))
	}
	for _, d := range slices.SortedFunc(maps.Keys(rules), order) {
		if err := write(dir, file, d.String()+" "+accessString(rules[d])); err != nil {
			return err
		}
	}
	return nil
}
