package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// systemd asks process 1 for groups. A slice is a group for other units, and can be
// made empty; a scope holds processes and cannot: it begins with its first process and
// ends with its last. So Create of a scope checks the resources and keeps them in the
// Group until Spawn or Add brings the process.
//
// What systemd knows of is given to it as properties of the unit, because it writes all
// of these anew whenever it is reloaded; then everything is written into the files as
// with the other driver. Scopes are delegated, so what is below them is ours alone.
type systemd struct {
	mu   sync.Mutex
	conn *dbus.Conn
}

// unit is what a path is to systemd.
type unit struct {
	slice string // the slice; of a scope, the one around it
	scope bool
	name  string // of the unit itself
	below string // directories below a scope, "/a/b"
	path  string // below the mount point
}

// translate tells which unit a path stands for. Names that end in .slice and .scope are
// units as they are. Of other names the first two are slices (what all pods have in
// common, and the pod), and the third, or the first after a slice that was named as
// one, is a scope; whatever follows is a directory below it:
//
//	/orlop/pod1/app           orlop.slice / orlop-pod1.slice / orlop-pod1-app.scope
//	/kubepods-pod1.slice/app  kubepods.slice / kubepods-pod1.slice / kubepods-pod1-app.scope
//
// Unit names are of the whole machine, so a scope carries the names above it.
func translate(p string) (*unit, error) {
	u := &unit{}
	prefix, named := "", false
	for i, c := range strings.Split(p[1:], "/") {
		switch {
		case u.scope:
			u.below += "/" + c
			continue
		case strings.HasSuffix(c, ".slice"):
			name := strings.TrimSuffix(c, ".slice")
			if name == "" || strings.HasPrefix(name, "-") || strings.HasSuffix(name, "-") || strings.Contains(name, "--") {
				return nil, errs.New(errs.Invalid, "cgroup path %q: %s is not the name of a slice", p, c)
			}
			if i > 0 && !strings.HasPrefix(name, prefix+"-") {
				return nil, errs.New(errs.Invalid, "cgroup path %q: systemd has %s not below %s.slice; a slice's name begins with that of the one above", p, c, prefix)
			}
			prefix, named = name, true
		case strings.HasSuffix(c, ".scope"):
			u.scope, u.name = true, c
		case named || i >= 2:
			u.scope, u.name = true, prefix+"-"+escape(c)+".scope"
		case i == 0:
			prefix = escape(c)
		default:
			prefix += "-" + escape(c)
		}
	}
	if prefix == "" {
		return nil, errs.New(errs.Invalid, "cgroup path %q: a scope must be in a slice", p)
	}
	u.slice = prefix + ".slice"
	part := ""
	for i, w := range strings.Split(prefix, "-") {
		if i > 0 {
			part += "-"
		}
		part += w
		u.path += "/" + part + ".slice"
	}
	if u.scope {
		u.path += "/" + u.name + u.below
	} else {
		u.name = u.slice
	}
	if len(u.name) > 255 {
		return nil, errs.New(errs.Invalid, "cgroup path %q: the name of its unit would be longer than 255 characters", p)
	}
	return u, nil
}

// escape is what systemd-escape(1) does: a dash stands for a step down in a slice's name.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == ':', c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// unescape undoes escape.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if i+4 <= len(s) && s[i] == '\\' && s[i+1] == 'x' {
			if c, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// child tells by which name below p, which u stands for, a unit or directory there is
// found: orlop-pod1.slice below /orlop is pod1.
func (u *unit) child(p, dir string) string {
	prefix := strings.TrimSuffix(u.slice, ".slice") + "-"
	for _, suffix := range []string{".slice", ".scope"} {
		name, ok := strings.CutSuffix(dir, suffix)
		if !ok || !strings.HasPrefix(name, prefix) {
			continue
		}
		name = unescape(strings.TrimPrefix(name, prefix))
		if c, err := translate(p + "/" + name); err == nil && c.path == u.path+"/"+dir {
			return name
		}
	}
	return dir
}

const dbusWait = 30 * time.Second

// with runs f with a connection, made at first use and again after it broke.
func (s *systemd) with(ctx context.Context, f func(ctx context.Context, c *dbus.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, dbusWait)
	defer cancel()
	s.mu.Lock()
	if s.conn != nil && !s.conn.Connected() {
		s.conn.Close()
		s.conn = nil
	}
	if s.conn == nil {
		// Its lifetime is the process's, not the call's.
		c, err := dbus.NewSystemConnectionContext(context.Background())
		if err != nil {
			// Root may also talk to systemd itself, past a bus that is down.
			var err2 error
			if c, err2 = dbus.NewSystemdConnectionContext(context.Background()); err2 != nil {
				s.mu.Unlock()
				return errs.New(errs.Unavailable, "ask systemd: %w; is the system's message bus (dbus) running?", err)
			}
		}
		s.conn = c
	}
	c := s.conn
	s.mu.Unlock()
	return f(ctx, c)
}

// job waits for the result of what systemd does.
func job(ctx context.Context, what string, start func(ch chan<- string) (int, error)) error {
	ch := make(chan string, 1)
	if _, err := start(ch); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	select {
	case r := <-ch:
		if r != "done" {
			return errs.New(errs.FailedPrecondition, "%s: systemd says: %s", what, r)
		}
		return nil
	case <-ctx.Done():
		return errs.New(errs.Timeout, "%s: systemd does not finish: %w", what, ctx.Err())
	}
}

func isDBus(err error, name string) bool {
	var e godbus.Error
	return errors.As(err, &e) && e.Name == name
}

const (
	errUnitExists = "org.freedesktop.systemd1.UnitExists"
	errNoUnit     = "org.freedesktop.systemd1.NoSuchUnit"
)

func property(name string, value any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
}

// transient starts a unit, in the place of one of that name that has failed. Properties of extra
// are taken instead of those of props.
func (s *systemd) transient(ctx context.Context, name string, props []dbus.Property, extra []Property) error {
	props = override(props, extra)
	return s.with(ctx, func(ctx context.Context, c *dbus.Conn) error {
		for attempt := 0; ; attempt++ {
			err := job(ctx, "start unit "+name, func(ch chan<- string) (int, error) {
				return c.StartTransientUnitContext(ctx, name, "replace", props, ch)
			})
			var refused godbus.Error
			if len(extra) > 0 && errors.As(err, &refused) && refused.Name != errUnitExists {
				return errs.New(errs.Invalid, "%w; are the names and types of annotations %s* what systemd expects? (%v)", err, PropertyAnnotation, extra)
			}
			if attempt > 0 || !isDBus(err, errUnitExists) {
				return err
			}
			if c.ResetFailedUnitContext(ctx, name) != nil {
				return err
			}
		}
	})
}

func (s *systemd) create(g *Group, p *plan) error {
	if g.unit.scope {
		if isDir(g.unifiedDir()) && (g.unit.below != "" || !g.Empty()) {
			err := s.update(g, p)
			if g.unit.below != "" || err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
			// Should it end before Spawn, it begins anew with the same.
			g.mu.Lock()
			defer g.mu.Unlock()
			g.pending = append(g.pending, p)
			return nil
		}
		if isDir(g.unifiedDir()) { // its last process has ended, and systemd is about to end it
			ctx, cancel := context.WithTimeout(context.Background(), dbusWait)
			defer cancel()
			if err := s.stop(ctx, g.unit.name); err != nil {
				return err
			}
			if err := removeTree(g.unifiedDir()); err != nil {
				return err
			}
		}
		if g.unit.below != "" {
			if scope := strings.TrimSuffix(g.unifiedDir(), g.unit.below); isDir(scope) {
				return g.host.create(g, p)
			}
			return errs.New(errs.FailedPrecondition, "%s is not running yet; a scope begins with its first process, and groups below it after that", g.unit.name)
		}
		g.mu.Lock()
		g.pending = append(g.pending, p)
		g.mu.Unlock()
		return nil
	}
	props := append(p.properties(true), property("Description", "Orlop "+g.path), property("DefaultDependencies", false),
		property("CPUAccounting", true), property("MemoryAccounting", true), property("TasksAccounting", true), property("IOAccounting", true))
	err := s.transient(context.Background(), g.unit.name, props, g.extra)
	if isDBus(err, errUnitExists) {
		return s.update(g, p)
	}
	if err != nil {
		return err
	}
	afterUnit.Hit()
	if err := g.host.create(g, p); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), dbusWait)
		defer cancel()
		s.stop(ctx, g.unit.name)
		return err
	}
	return nil
}

// start begins the group's scope with its first process.
func (s *systemd) start(g *Group, pid int) error {
	if g.unit.below != "" {
		return errs.New(errs.NotFound, "add process %d to cgroup %s: %s is not running", pid, g.path, g.unit.name)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if isDir(g.unifiedDir()) { // another Add was first
		return write(g.unifiedDir(), "cgroup.procs", fmt.Sprint(pid))
	}
	all := &plan{}
	for _, p := range g.pending {
		all.merge(p)
	}
	props := append(all.properties(true), property("Description", "Orlop "+g.path), property("DefaultDependencies", false),
		property("Slice", g.unit.slice), property("PIDs", []uint32{uint32(pid)}), property("Delegate", true),
		property("CollectMode", "inactive-or-failed"),
		property("CPUAccounting", true), property("MemoryAccounting", true), property("TasksAccounting", true), property("IOAccounting", true))
	if err := s.transient(context.Background(), g.unit.name, props, g.extra); err != nil {
		return fmt.Errorf("add process %d to cgroup %s: %w", pid, g.path, err)
	}
	afterUnit.Hit()
	if err := g.host.create(g, all); err != nil { // the caller ends the process, and the scope with it
		return fmt.Errorf("add process %d to cgroup %s: %w", pid, g.path, err)
	}
	g.pending = nil
	return nil
}

func (s *systemd) update(g *Group, p *plan) error {
	if !isDir(g.unifiedDir()) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.pending) > 0 {
			g.pending = append(g.pending, p)
			return nil
		}
		return errs.New(errs.NotFound, "it does not exist")
	}
	// The files first: they refuse what systemd would take and never set. And again after
	// it, because they are more exact.
	if err := g.set(p); err != nil {
		return err
	}
	if props := p.properties(false); len(props) > 0 && g.unit.below == "" {
		err := s.with(context.Background(), func(ctx context.Context, c *dbus.Conn) error {
			return c.SetUnitPropertiesContext(ctx, g.unit.name, true, props...)
		})
		if isDBus(err, errNoUnit) {
			return errs.New(errs.NotFound, "unit %s has ended", g.unit.name)
		}
		if err != nil {
			return errs.New(errs.Invalid, "set properties of unit %s: %w", g.unit.name, err)
		}
	}
	return g.apply(p)
}

// remove ends the unit once it has no processes: systemd would kill them.
func (s *systemd) remove(ctx context.Context, g *Group) error {
	if !isDir(g.unifiedDir()) {
		// A slice can be there for systemd without a directory.
		if g.unit.scope {
			return nil
		}
	} else if err := poll(ctx, func() (bool, error) { return g.Empty(), nil }); err != nil {
		pids, _ := g.Procs()
		return errs.New(errs.InUse, "%s has processes: %v; end them first", g.unit.name, pids[:min(len(pids), 8)])
	}
	if g.unit.below != "" {
		return nil
	}
	return s.stop(ctx, g.unit.name)
}

func (s *systemd) stop(ctx context.Context, name string) error {
	return s.with(ctx, func(ctx context.Context, c *dbus.Conn) error {
		err := job(ctx, "stop unit "+name, func(ch chan<- string) (int, error) {
			return c.StopUnitContext(ctx, name, "replace", ch)
		})
		if isDBus(err, errNoUnit) {
			err = nil
		}
		if e := c.ResetFailedUnitContext(ctx, name); e != nil && !isDBus(e, errNoUnit) && err == nil {
			err = fmt.Errorf("reset unit %s: %w", name, e)
		}
		return err
	})
}

// override puts properties in the place of those of the same name, or adds them.
func override(props []dbus.Property, extra []Property) []dbus.Property {
	for _, e := range extra {
		p := dbus.Property{Name: e.name, Value: e.value}
		if i := slices.IndexFunc(props, func(o dbus.Property) bool { return o.Name == e.name }); i >= 0 {
			props[i] = p
		} else {
			props = append(props, p)
		}
	}
	return props
}

// merge adds what p sets; the later value of a file counts, as it is written later.
func (p *plan) merge(o *plan) {
	p.steps = append(p.steps, o.steps...)
	p.props = append(p.props, o.props...)
	if o.devices != nil {
		p.devices = o.devices
	}
}

// properties are those values that systemd would write itself, and so has to know. A
// new unit gets no limit of tasks where none is wanted: systemd's default is 15 % of the
// machine's.
func (p *plan) properties(created bool) []dbus.Property {
	var list []dbus.Property
	last := map[string]int{} // systemd takes a property once
	add := func(name string, v any) {
		if i, ok := last[name]; ok {
			list[i] = property(name, v)
			return
		}
		last[name] = len(list)
		list = append(list, property(name, v))
	}
	if created {
		add("TasksMax", uint64(math.MaxUint64))
	}
	for _, s := range p.props {
		add(s.name, s.value)
	}
	return list
}
