package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/internal/platform/overlay"
)

// CreateContainer records a container of a sandbox that is ready, and checks whatever can
// be checked without starting it: image, user, mounts, devices, profile. Like RunSandbox it
// goes on with a request whose client was not told.
func (d *Driven) CreateContainer(ctx context.Context, sandbox ID, c ContainerConfig) (ContainerID, error) {
	pod, err := d.pod(sandbox)
	if err != nil {
		return "", err
	}
	if err := c.check(); err != nil {
		return "", err
	}
	unlock, err := d.locks.Lock(ctx, fmt.Sprintf("container/%s/%s/%d", sandbox, c.Name, c.Attempt))
	if err != nil {
		return "", err
	}
	defer unlock()
	box := pod.sandbox()
	if box.State != SandboxReady {
		return "", errs.New(errs.FailedPrecondition, "pod sandbox %s is %s; containers can be made only in a ready one", sandbox, box.State)
	}
	for _, old := range d.Containers(sandbox) {
		if old.Config.Name != c.Name || old.Config.Attempt != c.Attempt {
			continue
		}
		dc, err := d.container(old.ID)
		if err != nil {
			continue
		}
		dc.mu.Lock()
		again := !dc.rec.Answered && dc.rec.State == DrivenCreated
		dc.rec.Answered = true
		dc.mu.Unlock()
		if again {
			return old.ID, nil
		}
		return "", errs.New(errs.AlreadyExists, "pod %s has a container %s of attempt %d already: %s (remove it, or ask for another attempt)", box.Config.Key, c.Name, c.Attempt, old.ID)
	}
	if c.Users != nil && !c.Users.Equal(box.Config.Users) {
		return "", errs.New(errs.Invalid, "container %s of pod %s: its user namespace's mappings are not the pod's; leave them out, or give the same", c.Name, box.Config.Key)
	}
	log, err := validLogPath(box.Config.LogDir, c.LogPath)
	if err != nil {
		return "", err
	}
	img, err := d.p.o.Images.Use(ctx, c.Image)
	if err != nil {
		return "", err
	}
	id := newContainerID()
	oci, _, release, err := d.buildContainer(ctx, pod, id, &c, img, true)
	if err != nil {
		return "", err
	}
	release()
	rec := containerRecord{DrivenContainer: DrivenContainer{
		ID: id, Sandbox: sandbox, Config: c, ImageID: img.ID, State: DrivenCreated, CreatedAt: time.Now(), User: oci.Process.User, LogPath: log,
	}}
	dc, updates, err := d.admitContainer(ctx, pod, rec, oci)
	if err != nil {
		return "", fmt.Errorf("container %s of pod %s: %w", c.Name, box.Config.Key, err)
	}
	if err := d.Apply(ctx, updates); err != nil {
		err = fmt.Errorf("container %s of pod %s: what a plugin asks for other containers: %w", c.Name, box.Config.Key, err)
		return "", errors.Join(err, d.RemoveContainer(context.WithoutCancel(ctx), id))
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	dc.mu.Lock()
	dc.rec.Answered = true
	dc.mu.Unlock()
	return id, nil
}

// admitContainer asks plugins and, if they let it, records and shows the container.
func (d *Driven) admitContainer(ctx context.Context, pod *drivenPod, rec containerRecord, oci *specs.Spec) (_ *drivenContainer, updates []LimitsUpdate, err error) {
	id, sandbox := rec.ID, rec.Sandbox
	defer d.hooks.Hold()()
	hooked, own := d.hookedPod(pod), HookedContainer{rec.DrivenContainer, oci, pod.w.group() + "/" + string(id)}
	defer func() {
		if err != nil && d.hooked { // those that were asked first let it, and do not know
			if _, herr := d.hooks.Container(context.WithoutCancel(ctx), HookRemove, hooked, own); herr != nil {
				d.p.log.Error("a plugin failed", "hook", HookRemove, "container", id, "error", herr)
			}
		}
	}()
	if rec.Adjustment, updates, err = d.hooks.Create(ctx, hooked, own); err != nil {
		return nil, nil, fmt.Errorf("a plugin refuses it: %w", err)
	}
	if err := d.hooks.Adjust(oci, rec.Adjustment); err != nil {
		return nil, nil, fmt.Errorf("adjust it as plugins say: %w", err)
	}
	if err := d.containers.Put(string(id), rec); err != nil {
		return nil, nil, err
	}
	faultDrivenContainer.Hit()
	dc := &drivenContainer{pod: pod, rec: rec}
	d.mu.Lock()
	if d.pods[sandbox] == nil { // removed meanwhile
		d.mu.Unlock()
		d.containers.Delete(string(id))
		return nil, nil, errs.New(errs.NotFound, "there is no pod sandbox %q any more", sandbox)
	}
	d.all[id] = dc
	pod.mu.Lock()
	pod.containers[id] = dc
	pod.mu.Unlock()
	d.mu.Unlock()
	pod.show(&rec.DrivenContainer)
	d.publish(EventCreated, sandbox, id)
	more, herr := d.hooks.Container(ctx, HookPostCreate, hooked, own)
	if herr != nil {
		d.p.log.Error("a plugin failed", "hook", HookPostCreate, "container", id, "error", herr)
	}
	return dc, append(updates, more...), nil
}

// buildContainer writes the specification, and returns with it the image's layers, which it
// holds until release. With dry nothing is made on the host.
func (d *Driven) buildContainer(ctx context.Context, pod *drivenPod, id ContainerID, c *ContainerConfig, img Image, dry bool) (oci *specs.Spec, layers []string, release func(), err error) {
	w, spec := pod.w, pod.w.spec()
	if layers, release, err = d.p.o.Images.Layers(ctx, img.ID); err != nil {
		return nil, nil, nil, err
	}
	fail := func(err error) (*specs.Spec, []string, func(), error) {
		release()
		return nil, nil, nil, fmt.Errorf("container %s of pod %s: %w", c.Name, spec.Key, err)
	}
	mounts, err := d.binds(ctx, pod, id, c, dry)
	if err != nil {
		return fail(err)
	}
	spec.HostPID = c.PID == PIDNode
	spec.SharePID = c.PID == PIDPod
	spec.Security.Groups = c.Groups
	if c.StrictGroups {
		spec.Security.GroupsPolicy = "Strict"
	}
	pid := ""
	switch {
	case dry:
	case c.PID == PIDPod:
		n, err := w.pausePID(ctx)
		if err != nil {
			return fail(err)
		}
		pid = fmt.Sprintf("/proc/%d/ns/pid", n)
	case c.PID == PIDTarget:
		target, err := d.Container(c.Target)
		if err == nil && (target.State != DrivenRunning || target.Sandbox != pod.rec.ID) {
			err = errs.New(errs.FailedPrecondition, "container %s, whose PID namespace it asks for, does not run in this pod", c.Target)
		}
		if err != nil {
			return fail(err)
		}
		pid = fmt.Sprintf("/proc/%d/ns/pid", target.PID)
	}
	oci, err = buildSpec(specInput{
		Pod: &spec, Container: &c.Container, Image: img.Config, Env: merged(img.Config.Env, c.Variables), Layers: layers, Mounts: mounts,
		Net: w.nsPath(namespace.Net), IPC: w.nsPath(namespace.IPC), UTS: w.nsPath(namespace.UTS), PID: pid, User: w.nsPath(namespace.User),
		SeccompDir: d.p.o.SeccompDir, CgroupParent: w.group(), Expand: func(s string) string { return s },
	})
	if err != nil {
		return fail(err)
	}
	if err := c.complete(oci); err != nil {
		return fail(err)
	}
	if err := d.InjectDevices(oci, c.CDI); err != nil {
		return fail(err)
	}
	if _, err := d.p.handlers.runtimeFor(ctx, &spec, oci.Mounts); err != nil {
		return fail(err)
	}
	return oci, layers, release, nil
}

// merged puts variables over the image's: the later wins.
func merged(image, own []string) []string {
	set := envMap(own)
	var env []string
	for _, e := range image {
		for name := range envMap([]string{e}) {
			if _, ok := set[name]; !ok {
				env = append(env, e)
			}
		}
	}
	return append(env, own...)
}

// complete sets what the client says itself instead of leaving it to the pod's rules.
func (c *ContainerConfig) complete(s *specs.Spec) error {
	s.Process.NoNewPrivileges = c.NoNewPrivs
	score := c.OOMScoreAdj
	s.Process.OOMScoreAdj = &score
	s.Annotations = c.Annotations
	if !c.Security.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = c.MaskedPaths, c.ReadonlyPaths
	}
	for _, name := range c.Ambient {
		name = capabilityName(name)
		if !slices.Contains(allCapabilities, name) {
			return errs.New(errs.Invalid, "there is no capability %s; see capabilities(7)", name)
		}
		caps := s.Process.Capabilities
		for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted, &caps.Inheritable, &caps.Ambient} {
			if !slices.Contains(*set, name) {
				*set = append(slices.Clone(*set), name)
			}
		}
	}
	devices := s.Linux.Resources.Devices
	s.Linux.Resources = &specs.LinuxResources{}
	if c.Limits != nil {
		*s.Linux.Resources = *c.Limits
	}
	s.Linux.Resources.Devices = devices
	for _, n := range c.Nodes {
		list, err := nodes(n)
		if err != nil {
			return err
		}
		for _, dev := range list {
			s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(o specs.LinuxDevice) bool { return o.Path == dev.Path })
			s.Linux.Devices = append(s.Linux.Devices, dev)
			if !c.Security.Privileged {
				s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: n.Access})
			}
		}
	}
	return nil
}

// nodes are the devices that a path of the host stands for: itself, or all below it.
func nodes(n DeviceNode) (list []specs.LinuxDevice, err error) {
	fi, err := os.Stat(n.HostPath)
	if err != nil {
		return nil, errs.New(errs.Invalid, "device %s: %w", n.HostPath, err)
	}
	to := n.ContainerPath
	if to == "" {
		to = n.HostPath
	}
	if !fi.IsDir() {
		d, err := device(n.HostPath, to, unix.Stat)
		if err != nil {
			return nil, err
		}
		return []specs.LinuxDevice{d}, nil
	}
	ents, err := os.ReadDir(n.HostPath)
	if err != nil {
		return nil, err
	}
	for _, e := range ents {
		if e.IsDir() || e.Type()&os.ModeDevice == 0 {
			continue
		}
		d, err := device(filepath.Join(n.HostPath, e.Name()), filepath.Join(to, e.Name()), unix.Lstat)
		if err == nil {
			list = append(list, d)
		}
	}
	return list, nil
}

// binds are the mounts of a container: the pod's files and what the client asks for,
// which takes their place where it is the same path.
func (d *Driven) binds(ctx context.Context, pod *drivenPod, id ContainerID, c *ContainerConfig, dry bool) ([]specs.Mount, error) {
	w := pod.w
	spec := w.spec()
	var list []specs.Mount
	own := func(path string) bool {
		return slices.ContainsFunc(c.Binds, func(b Bind) bool { return filepath.Clean(b.ContainerPath) == path })
	}
	for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
		if !own("/etc/" + f) {
			list = append(list, bind(filepath.Join(w.runDir(), "etc", f), "/etc/"+f, c.Security.ReadOnlyRoot))
		}
	}
	if !own("/dev/shm") {
		from := filepath.Join(w.runDir(), "shm")
		if spec.HostIPC {
			from = "/dev/shm"
		}
		list = append(list, bind(from, "/dev/shm", false))
	}
	for i, b := range c.Binds {
		if !filepath.IsAbs(b.ContainerPath) {
			b.ContainerPath = filepath.Join("/", b.ContainerPath)
		}
		from := b.HostPath
		switch {
		case b.Image != "":
			b.ReadOnly = true
			path, err := d.imageMount(ctx, pod, id, i, b, dry)
			if err != nil {
				return nil, err
			}
			from = path
		case !filepath.IsAbs(from):
			return nil, errs.New(errs.Invalid, "mount on %s: host path %q is not an absolute path", b.ContainerPath, from)
		default:
			resolved, err := filepath.EvalSymlinks(from)
			if errors.Is(err, os.ErrNotExist) {
				// As the field's runtimes do: a missing source is made, as a directory.
				if !dry {
					err = os.MkdirAll(from, 0o755)
				} else {
					err = nil
				}
				resolved = from
			}
			if err != nil {
				return nil, errs.New(errs.Invalid, "mount on %s: %w", b.ContainerPath, err)
			}
			from = resolved
		}
		m := idMapped(bind(from, b.ContainerPath, b.ReadOnly), b.Users)
		m.Options = append(m.Options, propagation(b.Propagation))
		if b.Recursive {
			if !b.ReadOnly || b.Propagation != "" {
				return nil, errs.New(errs.Invalid, "mount on %s: a recursive read-only mount must be read-only and private", b.ContainerPath)
			}
			m.Options[1] = "rro"
		}
		if b.Propagation != "" && !dry {
			if err := checkPropagation(from, b.Propagation); err != nil {
				return nil, errs.New(errs.Invalid, "mount on %s: %w", b.ContainerPath, err)
			}
		}
		list = append(list, m)
	}
	sort.SliceStable(list, func(i, j int) bool { return depth(list[i].Destination) < depth(list[j].Destination) })
	return list, nil
}

// checkPropagation: mounts can only pass through a mount of the host that is shared, or
// a slave of one.
func checkPropagation(path, want string) error {
	list, err := mount.List()
	if err != nil {
		return err
	}
	best := -1
	for i, m := range list {
		if rel, err := filepath.Rel(m.Point, path); err == nil && filepath.IsLocal(rel) && (best < 0 || len(m.Point) >= len(list[best].Point)) {
			best = i
		}
	}
	if best < 0 || strings.Contains(list[best].Optional, "shared:") || want == "HostToContainer" && strings.Contains(list[best].Optional, "master:") {
		return nil
	}
	return fmt.Errorf("path %q is on %s, which is not a shared mount: mount propagation %s is not possible", path, list[best].Point, want)
}

// imageMount shows an image's files, read-only, and returns where.
func (d *Driven) imageMount(ctx context.Context, pod *drivenPod, id ContainerID, i int, b Bind, dry bool) (string, error) {
	img, err := d.p.o.Images.Use(ctx, b.Image)
	if err != nil {
		return "", err
	}
	if b.SubPath != "" && !filepath.IsLocal(b.SubPath) {
		return "", errs.New(errs.Invalid, "mount on %s: sub-path %q leaves the image", b.ContainerPath, b.SubPath)
	}
	dir := filepath.Join(pod.w.runDir(), "containers", string(id), "image", strconv.Itoa(i))
	layers, release, err := d.p.o.Images.Layers(ctx, img.ID)
	if err != nil {
		return "", err
	}
	defer release()
	if dry {
		if b.SubPath == "" {
			return dir, nil
		}
		f, err := overlay.ReadOnly(layers)
		if err != nil {
			return "", err
		}
		defer f.Close()
		fd, err := unix.Openat2(int(f.Fd()), b.SubPath, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
		if err != nil {
			return "", errs.New(errs.Invalid, "mount on %s: image %s has no %s: %w", b.ContainerPath, b.Image, b.SubPath, err)
		}
		return dir, unix.Close(fd)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if ok, err := mount.IsMounted(dir); err != nil {
		return "", err
	} else if !ok {
		if err := showLayers(layers, dir); err != nil {
			return "", fmt.Errorf("mount image %s: %w", b.Image, err)
		}
	}
	if b.SubPath == "" {
		return dir, nil
	}
	target := filepath.Join(pod.w.runDir(), "containers", string(id), "image-subpath", strconv.Itoa(i))
	if err := mountBeneath(dir, b.SubPath, target); err != nil {
		return "", err
	}
	return target, nil
}

// showLayers shows a stack of layers at dir, read-only.
func showLayers(layers []string, dir string) error {
	f, err := overlay.ReadOnly(layers)
	if err != nil {
		return err
	}
	defer f.Close()
	return overlay.Attach(f, dir)
}

// StartContainer starts a container that was made. Started already, it is
// errs.FailedPrecondition, unless the client before was not told.
func (d *Driven) StartContainer(ctx context.Context, id ContainerID) error {
	c, err := d.container(id)
	if err != nil {
		return err
	}
	unlock, err := d.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	st := c.status()
	if st.State != DrivenCreated {
		return errs.New(errs.FailedPrecondition, "container %s is %s; only a created one can be started", id, st.State)
	}
	pod, w := c.pod, c.pod.w
	box := pod.sandbox()
	if box.State != SandboxReady {
		return errs.New(errs.FailedPrecondition, "pod sandbox %s is %s; containers can be started only in a ready one", box.ID, box.State)
	}
	img, err := d.p.o.Images.Find(ctx, st.ImageID)
	if err != nil {
		return err
	}
	disk := filepath.Join(d.p.o.Root, "containers", string(id))
	for _, dir := range []string{filepath.Join(disk, "upper"), filepath.Join(disk, "work"), filepath.Join(w.runDir(), "containers", string(id))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	conf := st.Config
	oci, layers, release, err := d.buildContainer(ctx, pod, id, &conf, img, false)
	if err != nil {
		return err
	}
	defer release()
	if err := d.hooks.Adjust(oci, st.Adjustment); err != nil {
		return err
	}
	if err := w.keepProcess(id, oci.Process); err != nil {
		return err
	}
	log := keeper.LogConfig{Path: st.LogPath}
	if log.Path != "" {
		log.Root = pod.rec.Config.LogDir
		if err := makeLogDir(log.Root, log.Path); err != nil {
			return err
		}
	}
	runtime, err := d.p.handlers.runtimeFor(ctx, &box.Config.Spec, oci.Mounts)
	if err != nil {
		return err
	}
	if conf.Security.ReadOnlyRoot {
		oci.Root = &specs.Root{Path: "/", Readonly: true}
	}
	letGo := d.hooks.Hold()
	held := true
	unhold := func() {
		if held {
			letGo()
		}
		held = false
	}
	defer unhold()
	var updates []LimitsUpdate
	if d.hooked {
		if updates, err = d.hooks.Container(ctx, HookStart, d.hookedPod(pod), HookedContainer{st, oci, w.group() + "/" + string(id)}); err != nil {
			return fmt.Errorf("container %s: a plugin refuses its start: %w", id, err)
		}
	}
	started, err := d.p.runtime.run(ctx, keeper.Spec{
		ID: string(id), OCI: oci, Rootfs: executor.Rootfs{Lower: layers, Upper: filepath.Join(disk, "upper"), Work: filepath.Join(disk, "work"), IDMap: w.nsPath(namespace.User) != ""},
		Cgroup: filepath.Join(w.group(), string(id)), Log: log, Stdin: conf.Stdin, StdinOnce: conf.StdinOnce,
		Labels:  map[string]string{"pod": string(pod.rec.ID), "container": conf.Name},
		Runtime: runtime,
	})
	faultDrivenStarted.Hit()
	if err != nil {
		unhold()
		d.failed(c, err)
		return err
	}
	if err := d.started(c, started); err != nil {
		return err
	}
	if d.hooked {
		more, err := d.hooks.Container(ctx, HookPostStart, d.hookedPod(pod), HookedContainer{c.status(), oci, w.group() + "/" + string(id)})
		if err != nil {
			d.p.log.Error("a plugin failed", "hook", HookPostStart, "container", id, "error", err)
		}
		updates = append(updates, more...)
	}
	unhold()
	if err := d.Apply(ctx, updates); err != nil {
		d.p.log.Error("what a plugin asked for failed", "hook", HookStart, "container", id, "error", err)
	}
	// It may have ended before it was known to run, and its event with it.
	if s, err := d.p.runtime.status(ctx, string(id)); err == nil && s.Exit != nil {
		d.exited(c, *s.Exit)
	}
	return nil
}

func (d *Driven) started(c *drivenContainer, s keeper.Started) error {
	c.mu.Lock()
	c.rec.State, c.rec.PID, c.rec.StartedAt = DrivenRunning, s.PID, s.At
	rec := c.rec
	err := d.containers.Put(string(rec.ID), rec)
	c.mu.Unlock()
	c.pod.show(&rec.DrivenContainer)
	d.publish(EventStarted, rec.Sandbox, rec.ID)
	return err
}

// failed records a start that cannot succeed, with the code that a shell would have. One
// that may, because the keeper was lost or the client gave up, leaves the container as it
// was.
func (d *Driven) failed(c *drivenContainer, cause error) {
	code := 128
	switch errs.KindOf(cause) {
	case errs.NotFound:
		code = 127
	case errs.PermissionDenied:
		code = 126
	case errs.Invalid, errs.Unsupported, errs.ResourceExhausted, errs.FailedPrecondition:
	default:
		return
	}
	now := time.Now()
	d.end(c, DrivenCreated, func(r *containerRecord) {
		r.StartedAt, r.FinishedAt, r.ExitCode, r.Reason, r.Message = now, now, code, "StartError", cause.Error()
	})
}

// exited records the end that the keeper told.
func (d *Driven) exited(c *drivenContainer, x keeper.Exit) {
	reason := endReason(x)
	if x.At.IsZero() {
		x.At = time.Now()
	}
	d.end(c, DrivenRunning, func(r *containerRecord) { r.FinishedAt, r.ExitCode, r.Reason = x.At, x.Code, reason })
}

func (d *Driven) end(c *drivenContainer, from DrivenState, fn func(*containerRecord)) {
	c.ending.Lock()
	defer c.ending.Unlock()
	if !d.ended(c, from, fn) || !d.hooked {
		return
	}
	defer d.hooks.Hold()()
	d.tell(context.Background(), HookStop, c)
}

// ended records the end, and tells whether it was not known.
func (d *Driven) ended(c *drivenContainer, from DrivenState, fn func(*containerRecord)) bool {
	c.mu.Lock()
	if c.rec.State != from {
		c.mu.Unlock()
		return false
	}
	fn(&c.rec)
	c.rec.State, c.rec.PID = DrivenExited, 0
	rec := c.rec
	if err := d.containers.Put(string(rec.ID), rec); err != nil {
		d.p.log.Error("the end of a container could not be recorded; the keeper still knows it", "container", rec.ID, "error", err)
	}
	c.mu.Unlock()
	faultDrivenExited.Hit()
	c.pod.show(&rec.DrivenContainer)
	d.publish(EventStopped, rec.Sandbox, rec.ID)
	return true
}

// StopContainer sends the stop signal and, when the grace is over, SIGKILL to everything
// in the container. It is idempotent, and succeeds where there is no such container.
func (d *Driven) StopContainer(ctx context.Context, id ContainerID, grace time.Duration) error {
	c, err := d.container(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	st := c.status()
	if st.State == DrivenCreated { // not while it starts
		unlock, err := d.locks.Lock(ctx, string(id))
		if err != nil {
			return err
		}
		st = c.status()
		unlock()
	}
	if st.State == DrivenCreated {
		now := time.Now()
		d.end(c, DrivenCreated, func(r *containerRecord) { r.FinishedAt, r.ExitCode, r.Reason = now, 137, "Error" })
		return nil
	}
	if st.State != DrivenRunning {
		return nil
	}
	// What the client gives up waiting for is brought to its end all the same.
	graceful, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	var signal unix.Signal
	if grace > 0 {
		signal = c.pod.w.stopSignal(ctx, &st.Config.Container)
	}
	x, err := d.p.runtime.end(graceful, string(id), signal)
	if err != nil {
		return fmt.Errorf("stop container %s: %w", id, err)
	}
	d.exited(c, x)
	return nil
}

// RemoveContainer removes a container in whatever state it is. It is idempotent.
func (d *Driven) RemoveContainer(ctx context.Context, id ContainerID) error {
	c, err := d.container(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	unlock, err := d.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := d.container(id); err != nil {
		return nil
	}
	if st := c.status(); st.State == DrivenRunning {
		x, err := d.p.runtime.end(ctx, string(id), 0)
		if err != nil {
			return err
		}
		d.exited(c, x)
	}
	if err := c.pod.w.removeContainer(ctx, id); err != nil {
		return err
	}
	// An end that is being told of comes first.
	c.ending.Lock()
	defer c.ending.Unlock()
	defer d.hooks.Hold()()
	if d.hooked {
		d.tell(ctx, HookRemove, c)
	}
	if err := d.containers.Delete(string(id)); err != nil {
		return err
	}
	faultDrivenRemoved.Hit()
	st := c.status()
	d.mu.Lock()
	delete(d.all, id)
	c.pod.mu.Lock()
	delete(c.pod.containers, id)
	c.pod.mu.Unlock()
	d.mu.Unlock()
	c.pod.hide(&st)
	d.publish(EventDeleted, st.Sandbox, id)
	return nil
}

// UpdateContainer changes the limits of a container: at once where it runs, at its start
// where it does not yet. What res leaves out stays as it is.
func (d *Driven) UpdateContainer(ctx context.Context, id ContainerID, res *specs.LinuxResources) error {
	c, err := d.container(id)
	if err != nil {
		return err
	}
	unlock, err := d.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	st := c.status()
	if st.State == DrivenExited {
		return errs.New(errs.FailedPrecondition, "container %s has ended; its limits cannot be changed", id)
	}
	release := d.hooks.Hold()
	res, updates, err := d.hooks.Update(ctx, d.hookedPod(c.pod), d.hookedContainer(ctx, c.pod, st), res)
	release()
	if err != nil {
		return fmt.Errorf("container %s: a plugin refuses the update: %w", id, err)
	}
	if err := d.setLimits(ctx, c, res); err != nil {
		return err
	}
	if d.hooked {
		d.tell(ctx, HookPostUpdate, c)
	}
	return d.Apply(ctx, updates)
}

func (d *Driven) setLimits(ctx context.Context, c *drivenContainer, res *specs.LinuxResources) error {
	st := c.status()
	id := st.ID
	switch st.State {
	case DrivenExited:
		return errs.New(errs.FailedPrecondition, "container %s has ended; its limits cannot be changed", id)
	case DrivenRunning:
		if err := d.p.runtime.do(ctx, func(k *keeper.Client) error { return k.Update(ctx, string(id), res) }); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	limits := overlayLimits(c.rec.Config.Limits, res)
	c.rec.Config.Limits = limits
	return d.containers.Put(string(id), c.rec)
}

// overlayLimits is old with what new says.
func overlayLimits(old, new *specs.LinuxResources) *specs.LinuxResources {
	var r specs.LinuxResources
	if old != nil {
		r = *old
	}
	if new.CPU != nil {
		cpu := specs.LinuxCPU{}
		if r.CPU != nil {
			cpu = *r.CPU
		}
		set(&cpu.Shares, new.CPU.Shares)
		set(&cpu.Quota, new.CPU.Quota)
		set(&cpu.Period, new.CPU.Period)
		if new.CPU.Cpus != "" {
			cpu.Cpus = new.CPU.Cpus
		}
		if new.CPU.Mems != "" {
			cpu.Mems = new.CPU.Mems
		}
		r.CPU = &cpu
	}
	if new.Memory != nil {
		mem := specs.LinuxMemory{}
		if r.Memory != nil {
			mem = *r.Memory
		}
		set(&mem.Limit, new.Memory.Limit)
		set(&mem.Swap, new.Memory.Swap)
		r.Memory = &mem
	}
	if len(new.HugepageLimits) > 0 {
		r.HugepageLimits = new.HugepageLimits
	}
	if len(new.Unified) > 0 {
		unified := make(map[string]string)
		for k, v := range r.Unified {
			unified[k] = v
		}
		for k, v := range new.Unified {
			unified[k] = v
		}
		r.Unified = unified
	}
	return &r
}

func set[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}

// ReopenLog opens a container's log anew, after somebody has moved it.
func (d *Driven) ReopenLog(ctx context.Context, id ContainerID) error {
	c, err := d.Container(id)
	if err != nil {
		return err
	}
	if c.State != DrivenRunning {
		return errs.New(errs.FailedPrecondition, "container %s does not run", id)
	}
	return d.p.runtime.do(ctx, func(k *keeper.Client) error { return k.ReopenLog(ctx, string(id)) })
}
