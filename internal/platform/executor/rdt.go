package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/mount"
)

// rdt is a container's class of service in the resctrl filesystem: how much of the caches
// and of the memory's bandwidth it may use (OCI config-linux.md, "IntelRdt"; Linux
// filesystems/resctrl.rst).
type rdt struct {
	dir     string // of the class
	monitor string // of the container's monitoring group, "" for none
	named   bool   // the class has a name of its own, and outlives the container
	check   []string
	write   []string
	made    []string // directories that this start made
}

// newRDT reads what a container asks for; root is where resctrl is mounted.
func newRDT(root, id string, r *specs.LinuxIntelRdt) (*rdt, error) {
	name := r.ClosID
	if name == "" {
		name = id
	}
	c := &rdt{dir: filepath.Join(root, name), named: r.ClosID != ""}
	if r.ClosID != "/" {
		if err := groupName("closID", name); err != nil {
			return nil, err
		}
	}
	for _, l := range []struct{ field, prefix, value string }{{"l3CacheSchema", "", r.L3CacheSchema}, {"memBwSchema", "MB:", r.MemBwSchema}} {
		if l.value == "" {
			continue
		}
		if !strings.HasPrefix(l.value, l.prefix) {
			return nil, errs.New(errs.Invalid, "linux.intelRdt.%s: %q does not start with %s", l.field, l.value, l.prefix)
		}
		c.check = append(c.check, l.value)
	}
	c.write = append(append(c.write, c.check...), r.Schemata...)
	for _, l := range c.write {
		if strings.ContainsAny(l, "\n\x00") || !strings.Contains(l, ":") {
			return nil, errs.New(errs.Invalid, "linux.intelRdt.schemata: %q is not one line like L3:0=ff;1=ff", l)
		}
	}
	if r.EnableMonitoring {
		if err := groupName("enableMonitoring: the container's name", id); err != nil {
			return nil, err
		}
		c.monitor = filepath.Join(c.dir, "mon_groups", id)
	}
	return c, nil
}

// groupName refuses names that are no directory of resctrl's own.
func groupName(field, name string) error {
	switch name {
	case "", ".", "..", "info", "mon_groups", "mon_data":
	default:
		if !strings.ContainsAny(name, "/\n\x00") {
			return nil
		}
	}
	return errs.New(errs.Invalid, "linux.intelRdt.%s: %q cannot be the name of a group", field, name)
}

// resctrl returns where the filesystem is mounted.
func resctrl() (string, error) {
	list, err := mount.List()
	if err != nil {
		return "", err
	}
	for _, m := range list {
		if m.Type == "resctrl" {
			return m.Point, nil
		}
	}
	return "", errs.New(errs.Unsupported, "linux.intelRdt: no resctrl filesystem is mounted; where the processor has it, mount it with: mount -t resctrl resctrl /sys/fs/resctrl")
}

// class reads Spec.Linux.IntelRdt.
func (b *builder) class(id string, r *specs.LinuxIntelRdt) error {
	if r == nil {
		return nil
	}
	root, err := resctrl()
	if err == nil {
		b.rdt, err = newRDT(root, id, r)
	}
	return err
}

// prepare makes the groups. A class that is there already must be what is asked for.
func (c *rdt) prepare() error {
	_, err := os.Stat(c.dir)
	there := err == nil
	switch {
	case there:
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case c.named && len(c.write) == 0:
		return errs.New(errs.NotFound, "linux.intelRdt.closID: the class %s does not exist, and no schemata to make it with are given", filepath.Base(c.dir))
	default:
		if err := c.mkdir(c.dir); err != nil {
			return err
		}
	}
	lines := c.write
	if there && c.named && len(c.check) > 0 {
		now, err := os.ReadFile(filepath.Join(c.dir, "schemata"))
		if err != nil {
			return err
		}
		for _, l := range c.check {
			if !schemataHave(string(now), l) {
				return errs.New(errs.Invalid, "linux.intelRdt: the class %s exists and is not %s", filepath.Base(c.dir), l)
			}
		}
		lines = lines[len(c.check):]
	}
	if len(lines) > 0 {
		if err := c.put(filepath.Join(c.dir, "schemata"), strings.Join(lines, "\n")+"\n"); err != nil {
			return err
		}
	}
	if c.monitor != "" {
		return c.mkdir(c.monitor)
	}
	return nil
}

func (c *rdt) mkdir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return kinded(fmt.Errorf("linux.intelRdt: %w%s", err, c.reason()), err)
	}
	c.made = append(c.made, dir)
	return nil
}

func (c *rdt) put(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		_, err = f.WriteString(text)
		if e := f.Close(); err == nil {
			err = e
		}
	}
	if err != nil {
		return kinded(fmt.Errorf("linux.intelRdt: write %s: %w%s", strings.TrimSpace(text), err, c.reason()), err)
	}
	return nil
}

// reason is what the kernel has to say about the last command.
func (c *rdt) reason() string {
	for dir := c.dir; len(dir) > 1; dir = filepath.Dir(dir) {
		if b, err := os.ReadFile(filepath.Join(dir, "info", "last_cmd_status")); err == nil {
			return " (" + strings.TrimSpace(string(b)) + ")"
		}
	}
	return ""
}

// assign puts a process into the groups.
func (c *rdt) assign(pid int) error {
	for _, dir := range []string{c.dir, c.monitor} {
		if dir == "" {
			continue
		}
		if err := c.put(filepath.Join(dir, "tasks"), strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// undo removes what prepare made.
func (c *rdt) undo() {
	for i := len(c.made) - 1; i >= 0; i-- {
		os.Remove(c.made[i])
	}
}

// RemoveClass removes what Create made for a container in the resctrl filesystem: its
// monitoring group, and its class unless that has a name of its own. It is for when the
// container is deleted, and does nothing where there is nothing.
func RemoveClass(id string, r *specs.LinuxIntelRdt) error {
	if r == nil {
		return nil
	}
	root, err := resctrl()
	if errors.Is(err, errs.Unsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	c, err := newRDT(root, id, r)
	if err != nil {
		return err
	}
	return c.remove()
}

func (c *rdt) remove() error {
	dirs := []string{c.monitor}
	if !c.named {
		dirs = append(dirs, c.dir)
	}
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("linux.intelRdt: %w", err)
		}
	}
	return nil
}

// UpdateClass changes the schemata of a container's class: those of L3 caches, of memory
// bandwidth, or both. It returns a function that puts back what was there. A class is changed
// for all that are in it; a container that has none, and what the processor or kernel cannot
// limit, is refused.
func UpdateClass(id string, r *specs.LinuxIntelRdt, l3, bandwidth string) (undo func() error, err error) {
	if r == nil {
		return nil, errs.New(errs.FailedPrecondition, "linux.intelRdt: the container was created without, and is in no class of its own to change")
	}
	root, err := resctrl()
	if err != nil {
		return nil, err
	}
	return updateClass(root, id, r, l3, bandwidth)
}

func updateClass(root, id string, r *specs.LinuxIntelRdt, l3, bandwidth string) (undo func() error, err error) {
	c, err := newRDT(root, id, &specs.LinuxIntelRdt{ClosID: r.ClosID, L3CacheSchema: l3, MemBwSchema: bandwidth})
	if err != nil {
		return nil, err
	}
	for _, l := range []struct{ schema, resource, what string }{{l3, "L3", "L3 caches"}, {bandwidth, "MB", "memory bandwidth"}} {
		if l.schema == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(root, "info", l.resource)); err != nil {
			return nil, errs.New(errs.Unsupported, "linux.intelRdt: %s cannot be limited here: %w", l.what, err)
		}
	}
	file := filepath.Join(c.dir, "schemata")
	before, err := os.ReadFile(file)
	if err != nil {
		return nil, kinded(fmt.Errorf("linux.intelRdt: the container's class: %w", err), err)
	}
	if err := c.put(file, strings.Join(c.write, "\n")+"\n"); err != nil {
		return nil, err
	}
	return func() error { return c.put(file, string(before)) }, nil
}

// schemataHave tells whether a schemata file says what line says, for every domain that
// line names. The kernel aligns names and pads numbers.
func schemataHave(file, line string) bool {
	kind, want, _ := strings.Cut(line, ":")
	for l := range strings.Lines(file) {
		k, have, ok := strings.Cut(strings.TrimSpace(l), ":")
		if !ok || strings.TrimSpace(k) != strings.TrimSpace(kind) {
			continue
		}
		now := domains(have)
		for d, v := range domains(want) {
			if now[d] != v {
				return false
			}
		}
		return true
	}
	return false
}

func domains(list string) map[string]string {
	m := map[string]string{}
	for part := range strings.SplitSeq(list, ";") {
		if d, v, ok := strings.Cut(part, "="); ok {
			v = strings.ToLower(strings.TrimLeft(strings.TrimSpace(v), "0"))
			m[strings.TrimSpace(d)] = v
		}
	}
	return m
}
