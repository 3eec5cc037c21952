package pod

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

var (
	faultContainerIntent  = fault.New("pod.container.intent-recorded")
	faultContainerFiles   = fault.New("pod.container.files-made")
	faultContainerStarted = fault.New("pod.container.started")
	faultContainerDone    = fault.New("pod.container.recorded")
	faultContainerRemoved = fault.New("pod.container.removed")
)

// Back-off of a container that ends again and again, as Kubernetes has it.
const (
	backOffFirst = 10 * time.Second
	backOffMost  = 5 * time.Minute
	backOffReset = 10 * time.Minute
)

func canonicalState(s state) string {
	raw, _ := json.Marshal(s)
	return string(raw)
}

func newContainerID() ContainerID {
	var b [32]byte
	rand.Read(b[:])
	return ContainerID(hex.EncodeToString(b[:]))
}

// advance does the next thing for one container, and says when to look again.
func (w *worker) advance(ctx context.Context, spec *Spec, c *Container) (time.Duration, error) {
	st := w.container(c.Name)
	if st.State == RunningNow {
		ks, err := w.p.runtime.status(ctx, string(st.ID))
		switch {
		case isGone(err):
			w.exited(c, lost)
		case err != nil:
			return 0, err
		case ks.Exit != nil:
			w.exited(c, *ks.Exit)
		default:
			w.mu.Lock()
			restart := w.restarted[c.Name]
			w.mu.Unlock()
			if st.Image != c.Image {
				w.note(c.Name, false, "Killing", "the container's image changed; it is started again")
				restart = true
			}
			if restart {
				w.stopContainer(ctx, c, spec.TerminationGrace)
				if ctx.Err() != nil {
					return 0, ctx.Err()
				}
				break
			}
			w.ensureProbes(c, st.ID)
			return idle, nil
		}
		st = w.container(c.Name)
	}
	if st.State == Terminated {
		policy := policyOf(spec, c)
		w.mu.Lock()
		asked := w.restarted[c.Name]
		delete(w.restarted, c.Name)
		w.mu.Unlock()
		if policy == RestartNever || policy == RestartOnFailure && st.ExitCode == 0 || st.Init && !c.Sidecar() && st.ExitCode == 0 {
			return idle, nil
		}
		if !asked || st.Image == c.Image {
			if wait := w.backOff(c, &st); wait > 0 {
				return wait, nil
			}
		}
	}
	if wait := w.waiting("start/" + c.Name); wait > 0 {
		return wait, nil
	}
	if err := w.startContainer(ctx, spec, c); err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return w.startFailed(c, err), nil
	}
	w.succeeded("start/" + c.Name)
	if c.Startup == nil && !c.Sidecar() {
		return idle, nil
	}
	return idle, nil
}

// backOff returns how long to wait before the next incarnation.
func (w *worker) backOff(c *Container, st *ContainerStatus) time.Duration {
	w.mu.Lock()
	r := w.tries["crash/"+c.Name]
	if st.FinishedAt.Sub(st.StartedAt) > backOffReset {
		r = retry{}
	}
	if r.next.IsZero() || r.next.Before(st.FinishedAt) {
		delay := time.Duration(0)
		if r.n > 0 {
			delay = min(backOffMost, backOffFirst<<min(r.n-1, 10))
		}
		r = retry{r.n + 1, st.FinishedAt.Add(delay)}
		w.tries["crash/"+c.Name] = r
	}
	wait := time.Until(r.next)
	w.mu.Unlock()
	if wait > 0 && st.Reason != "CrashLoopBackOff" {
		w.note(c.Name, true, "BackOff", "back-off restarting the failed container")
		w.updateContainer(c.Name, func(s *ContainerStatus) {
			s.Last = s.termination()
			s.State, s.Reason, s.Message = Terminated, "CrashLoopBackOff", fmt.Sprintf("back-off %s restarting the failed container", wait.Round(time.Second))
		})
	}
	return wait
}

func (s *ContainerStatus) termination() *Termination {
	if s.Reason == "CrashLoopBackOff" && s.Last != nil {
		return s.Last
	}
	return &Termination{s.ID, s.Reason, s.Message, s.ExitCode, s.Signal, s.StartedAt, s.FinishedAt}
}

// startFailed says why a container could not be started.
func (w *worker) startFailed(c *Container, err error) time.Duration {
	reason := "CreateContainerError"
	var se *startError
	if errors.As(err, &se) {
		reason = se.reason
	}
	if reason == "ErrImagePull" {
		if w.container(c.Name).Reason == "ErrImagePull" || w.container(c.Name).Reason == "ImagePullBackOff" {
			reason = "ImagePullBackOff"
		}
	}
	w.note(c.Name, true, "Failed", err.Error())
	w.updateContainer(c.Name, func(s *ContainerStatus) {
		if s.State == Terminated {
			s.Last = s.termination()
		}
		s.State, s.Reason, s.Message, s.ID = Waiting, reason, err.Error(), ""
	})
	return w.later("start/"+c.Name, 2*time.Second, backOffMost)
}

// startError is a failure with Kubernetes' word for it.
type startError struct {
	reason string
	err    error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// startContainer begins a new incarnation, or completes one that a daemon before us
// had begun.
func (w *worker) startContainer(ctx context.Context, spec *Spec, c *Container) error {
	img, err := w.image(ctx, spec, c)
	if err != nil {
		return &startError{"ErrImagePull", err}
	}
	mounts, devices, err := w.mounts(ctx, spec, c)
	if err != nil {
		return &startError{"CreateContainerConfigError", err}
	}
	pod := w.status()
	env, err := resolveEnv(c, img.Config.Env, envSource{
		ConfigMap: func(name string) (map[string][]byte, error) { return w.configData(spec, false, name) },
		Secret:    func(name string) (map[string][]byte, error) { return w.configData(spec, true, name) },
		Field:     func(path string) (string, error) { return fieldValue(&pod, path) },
		Resource:  func(r ResourceRef) (string, error) { return resourceValue(spec, c, r) },
	})
	if err != nil {
		return &startError{"CreateContainerConfigError", err}
	}
	st := w.container(c.Name)
	id := st.ID
	if st.State != Waiting || id == "" {
		if id != "" { // the incarnation before goes; its log stays
			if err := w.removeContainer(ctx, id); err != nil {
				return err
			}
		}
		fresh := newContainerID()
		err := w.updateContainer(c.Name, func(s *ContainerStatus) {
			if s.State == Terminated {
				s.Last = s.termination()
				s.Restarts++
			}
			*s = ContainerStatus{Name: s.Name, Init: s.Init, ID: fresh, Image: c.Image, ImageID: img.ID, State: Waiting, Reason: "ContainerCreating", Restarts: s.Restarts, Last: s.Last}
		})
		if err != nil {
			return err
		}
		id = fresh
		w.dropOldLogs(c.Name, st.Restarts)
		st = w.container(c.Name)
	}
	faultContainerIntent.Hit()
	layers, release, err := w.p.o.Images.Layers(ctx, img.ID)
	if err != nil {
		return err
	}
	defer release()
	disk := filepath.Join(w.p.o.Root, "containers", string(id))
	dir := filepath.Join(w.runDir(), "containers", string(id))
	for _, d := range []string{filepath.Join(disk, "upper"), filepath.Join(disk, "work"), dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	message := filepath.Join(dir, "termination-log")
	if err := os.WriteFile(message, nil, 0o666); err != nil {
		return err
	}
	if err := os.Chmod(message, 0o666); err != nil {
		return err
	}
	path := c.TerminationMessagePath
	if path == "" {
		path = "/dev/termination-log"
	}
	mounts = append(mounts, bind(message, path, false))
	if mounts, err = w.subPaths(dir, c, mounts, env); err != nil {
		return &startError{"CreateContainerConfigError", err}
	}
	faultContainerFiles.Hit()
	pid := ""
	if spec.SharePID && !spec.HostPID {
		n, err := w.pausePID(ctx)
		if err != nil {
			return err
		}
		pid = fmt.Sprintf("/proc/%d/ns/pid", n)
	}
	vars := envMap(env)
	oci, err := buildSpec(specInput{
		Pod: spec, Container: c, Image: img.Config, Env: env, Layers: layers, Mounts: mounts, Devices: devices,
		Net: w.nsPath(namespace.Net), IPC: w.nsPath(namespace.IPC), UTS: w.nsPath(namespace.UTS), PID: pid,
		SeccompDir: w.p.o.SeccompDir, MaxPIDs: w.p.o.MaxPIDs, CgroupParent: w.group(),
		Expand: func(s string) string { return expand(s, vars) },
	})
	if err != nil {
		return &startError{"CreateContainerConfigError", err}
	}
	rootfs := executor.Rootfs{Lower: layers, Upper: filepath.Join(disk, "upper"), Work: filepath.Join(disk, "work")}
	if c.Security.ReadOnlyRoot && len(layers) > 0 {
		// Mount points that the image lacks are made on the writable layer all the same.
		oci.Root = &specs.Root{Path: "/", Readonly: true}
	}
	if err := w.keepProcess(id, oci.Process); err != nil {
		return err
	}
	started, err := w.p.runtime.run(ctx, keeper.Spec{
		ID: string(id), OCI: oci, Rootfs: rootfs, Cgroup: filepath.Join(w.group(), string(id)),
		Log:       keeper.LogConfig{Path: w.logPath(c.Name, st.Restarts), MaxBytes: w.p.o.LogMaxBytes, MaxFiles: w.p.o.LogMaxFiles},
		Stdin:     c.Stdin,
		StdinOnce: c.StdinOnce,
		Labels:    map[string]string{"pod": string(w.m.ID), "container": c.Name},
	})
	faultContainerStarted.Hit()
	if err != nil {
		return err
	}
	err = w.updateContainer(c.Name, func(s *ContainerStatus) {
		s.State, s.Reason, s.Message, s.PID, s.StartedAt = RunningNow, "", "", started.PID, started.At
		s.Started = c.Startup == nil
		s.Ready = c.Startup == nil && c.Readiness == nil
	})
	if err != nil {
		return err
	}
	faultContainerDone.Hit()
	w.note(c.Name, false, "Started", "started container "+c.Name)
	if c.PostStart != nil {
		if err := w.hook(ctx, c, &c.PostStart.Action); err != nil && ctx.Err() == nil {
			w.note(c.Name, true, "FailedPostStartHook", err.Error())
			w.mu.Lock()
			w.restarted[c.Name] = true
			w.mu.Unlock()
			w.poke()
		}
	}
	w.ensureProbes(c, id)
	return nil
}

func (w *worker) configData(spec *Spec, secret bool, name string) (map[string][]byte, error) {
	c, err := w.p.Config(context.Background(), secret, spec.Namespace, name)
	return c.Data, err
}

// image returns the container's image, pulling it where its policy says so.
func (w *worker) image(ctx context.Context, spec *Spec, c *Container) (Image, error) {
	if c.PullPolicy != PullAlways {
		img, err := w.p.o.Images.Find(ctx, c.Image)
		if err == nil {
			return img, nil
		}
		if !isGone(err) {
			return img, err
		}
		if c.PullPolicy == PullNever {
			return img, errs.New(errs.NotFound, "image %s is not here, and the container's imagePullPolicy is Never; get it with: orlop image pull %s", c.Image, c.Image)
		}
	}
	credentials := make(map[string]Credential)
	for _, name := range spec.ImagePulls {
		conf, err := w.p.Config(ctx, true, spec.Namespace, name)
		if err != nil {
			w.note(c.Name, true, "FailedToRetrieveImagePullSecret", err.Error())
			continue
		}
		if err := dockerCredentials(conf, credentials); err != nil {
			w.note(c.Name, true, "FailedToRetrieveImagePullSecret", err.Error())
		}
	}
	w.note(c.Name, false, "Pulling", "pulling image "+c.Image)
	begin := time.Now()
	img, err := w.p.o.Images.Pull(ctx, c.Image, credentials)
	if err == nil {
		w.note(c.Name, false, "Pulled", fmt.Sprintf("pulled image %s in %s", c.Image, time.Since(begin).Round(time.Millisecond)))
	}
	return img, err
}

// mounts returns what the container's volumes and files are mounted from.
func (w *worker) mounts(ctx context.Context, spec *Spec, c *Container) (list []specs.Mount, devices []string, err error) {
	etc := filepath.Join(w.runDir(), "etc")
	ready := make(map[string]volume)
	find := func(name string) (volume, error) {
		if v, ok := ready[name]; ok {
			return v, nil
		}
		i := slices.IndexFunc(spec.Volumes, func(v Volume) bool { return v.Name == name })
		if i < 0 {
			return volume{}, errs.New(errs.Invalid, "the pod has no volume %q", name)
		}
		v, err := w.prepareVolume(ctx, spec, &spec.Volumes[i])
		ready[name] = v
		return v, err
	}
	for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
		list = append(list, bind(filepath.Join(etc, f), "/etc/"+f, c.Security.ReadOnlyRoot && f != "hosts"))
	}
	switch {
	case spec.HostIPC:
		list = append(list, bind("/dev/shm", "/dev/shm", false))
	case w.sharesMemory(spec):
		list = append(list, bind(filepath.Join(w.runDir(), "shm"), "/dev/shm", false))
	default:
		list = append(list, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}})
	}
	for _, m := range c.Mounts {
		v, err := find(m.Volume)
		if err != nil {
			return nil, nil, fmt.Errorf("volume %s: %w", m.Volume, err)
		}
		if v.block {
			return nil, nil, errs.New(errs.Invalid, "volume %s is a block device; use volumeDevices for it", m.Volume)
		}
		b := bind(v.path, m.Path, m.ReadOnly || v.readOnly)
		if (m.ReadOnly || v.readOnly) && (m.RecursiveReadOnly == "Enabled" || m.RecursiveReadOnly == "IfPossible") {
			b.Options[1] = "rro"
		}
		switch m.Propagation {
		case "HostToContainer":
			b.Options = append(b.Options, "rslave")
		case "Bidirectional":
			b.Options = append(b.Options, "rshared")
		default:
			b.Options = append(b.Options, "rprivate")
		}
		list = append(list, b)
	}
	for _, d := range c.Devices {
		v, err := find(d.Volume)
		if err != nil {
			return nil, nil, fmt.Errorf("volume %s: %w", d.Volume, err)
		}
		if !v.block {
			return nil, nil, errs.New(errs.Invalid, "volume %s is a filesystem; use volumeMounts for it", d.Volume)
		}
		dev := v.path + ":" + d.Path
		if v.readOnly {
			dev += ":r"
		}
		devices = append(devices, dev)
	}
	return list, devices, nil
}

func bind(from, to string, readOnly bool) specs.Mount {
	m := specs.Mount{Source: from, Destination: to, Type: "bind", Options: []string{"rbind", "rw"}}
	if readOnly {
		m.Options[1] = "ro"
	}
	return m
}

// subPaths replaces the sources of mounts with a subPath by a mount of exactly that
// file or directory, resolved without ever leaving the volume, so that nobody can
// exchange it for a symlink between the check and its use.
func (w *worker) subPaths(dir string, c *Container, list []specs.Mount, env []string) ([]specs.Mount, error) {
	vars := envMap(env)
	for i, m := range c.Mounts {
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = expand(m.SubPathExpr, vars)
		}
		if sub == "" {
			continue
		}
		at := slices.IndexFunc(list, func(l specs.Mount) bool { return l.Destination == m.Path && l.Type == "bind" })
		if at < 0 {
			continue
		}
		target := filepath.Join(dir, "subpath", strconv.Itoa(i))
		if err := mountBeneath(list[at].Source, sub, target); err != nil {
			return nil, fmt.Errorf("subPath %q of volume %s: %w", sub, m.Volume, err)
		}
		list[at].Source = target
	}
	return list, nil
}

// mountBeneath mounts root/sub at target. What is missing of sub is made as a
// directory.
func mountBeneath(root, sub, target string) error {
	if filepath.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
		return errs.New(errs.Invalid, "it must be a relative path without '..'")
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.Stat(sub); errors.Is(err, os.ErrNotExist) {
		if err := r.MkdirAll(sub, 0o750); err != nil {
			return err
		}
		if fi, err := os.Stat(root); err == nil {
			r.Chmod(sub, fi.Mode())
		}
	}
	rfd, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(rfd)
	fd, err := unix.Openat2(rfd, sub, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.MkdirAll(target, 0o755)
	} else {
		err = os.WriteFile(target, nil, 0o644)
	}
	if err != nil {
		return err
	}
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// exited records the end of the container's present incarnation.
func (w *worker) exited(c *Container, x keeper.Exit) {
	st := w.container(c.Name)
	if st.State != RunningNow {
		return
	}
	w.stopProbe(st.ID)
	reason := "Completed"
	switch {
	case x.OOMKilled:
		reason = "OOMKilled"
	case !x.Known:
		reason = "ContainerStatusUnknown"
	case x.Code != 0:
		reason = "Error"
	}
	if x.At.IsZero() {
		x.At = time.Now()
	}
	w.updateContainer(c.Name, func(s *ContainerStatus) {
		s.State, s.Reason, s.Message = Terminated, reason, w.terminationMessage(c, s.ID, x.Code)
		s.Ready, s.Started, s.PID = false, false, 0
		s.ExitCode, s.Signal, s.FinishedAt = x.Code, x.Signal, x.At
	})
}

// terminationMessage reads what the container left for whoever asks why it ended.
func (w *worker) terminationMessage(c *Container, id ContainerID, code int) string {
	f, err := os.Open(filepath.Join(w.runDir(), "containers", string(id), "termination-log"))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 4096))
	return string(b)
}

// stopContainers stops everything: main containers side by side, then sidecars in
// reverse order.
func (w *worker) stopContainers(ctx context.Context, grace time.Duration) {
	spec := w.spec()
	end := time.Now().Add(grace)
	var wg sync.WaitGroup
	for i := range spec.Containers {
		wg.Go(func() { w.stopContainer(ctx, &spec.Containers[i], grace) })
	}
	wg.Wait()
	for i := len(spec.Init) - 1; i >= 0; i-- {
		w.stopContainer(ctx, &spec.Init[i], max(2*time.Second, time.Until(end)))
	}
}

// stopContainer ends the present incarnation: preStop hook, stop signal, and
// SIGKILL when the grace is over. A cancelled ctx kills at once.
func (w *worker) stopContainer(ctx context.Context, c *Container, grace time.Duration) {
	st := w.container(c.Name)
	if st.State != RunningNow {
		return
	}
	w.stopProbe(st.ID)
	id := string(st.ID)
	w.note(c.Name, false, "Killing", "stopping container "+c.Name)
	graceful, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if c.PreStop != nil && grace > 0 {
		if err := w.hook(graceful, c, &c.PreStop.Action); err != nil {
			w.note(c.Name, true, "FailedPreStopHook", err.Error())
		}
	}
	hard := context.WithoutCancel(ctx)
	var x keeper.Exit
	var err error
	if grace > 0 {
		if err = w.p.runtime.signal(hard, id, w.stopSignal(graceful, c), false); err == nil {
			x, err = w.p.runtime.wait(graceful, id)
		}
	} else {
		err = context.DeadlineExceeded
	}
	if err != nil && !isGone(err) {
		if err = w.p.runtime.signal(hard, id, unix.SIGKILL, true); err == nil {
			last, cancel := context.WithTimeout(hard, 30*time.Second)
			x, err = w.p.runtime.wait(last, id)
			cancel()
		}
	}
	if isGone(err) {
		x, err = lost, nil
	}
	if err != nil {
		w.p.log.Error("a container does not end", "pod", w.m.Spec.Key, "container", c.Name, "error", err)
		return
	}
	w.exited(c, x)
}

func (w *worker) stopSignal(ctx context.Context, c *Container) unix.Signal {
	name := c.StopSignal
	if name == "" {
		if img, err := w.p.o.Images.Find(ctx, c.Image); err == nil {
			name = img.Config.StopSignal
		}
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return unix.Signal(n)
	}
	if name != "" && !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if s := unix.SignalNum(name); s != 0 {
		return s
	}
	return unix.SIGTERM
}

// removeContainer removes an incarnation: process, control group, writable layer.
func (w *worker) removeContainer(ctx context.Context, id ContainerID) error {
	w.stopProbe(id)
	if err := w.p.runtime.destroy(ctx, string(id)); err != nil {
		return err
	}
	for _, d := range []string{filepath.Join(w.runDir(), "containers", string(id)), filepath.Join(w.p.o.Root, "containers", string(id))} {
		if err := removeTree(ctx, d); err != nil {
			return err
		}
	}
	faultContainerRemoved.Hit()
	return nil
}

func (w *worker) logPath(container string, incarnation int) string {
	return filepath.Join(w.logDir(), container, strconv.Itoa(incarnation)+".log")
}

// dropOldLogs keeps the logs of the present and the two incarnations before.
func (w *worker) dropOldLogs(container string, now int) {
	if now < 2 {
		return
	}
	old, _ := filepath.Glob(w.logPath(container, now-2) + "*")
	for _, f := range old {
		os.Remove(f)
	}
}

// dockerCredentials reads a secret of type kubernetes.io/dockerconfigjson.
func dockerCredentials(c Config, into map[string]Credential) error {
	var conf struct {
		Auths map[string]struct{ Username, Password, Auth string }
	}
	raw, ok := c.Data[".dockerconfigjson"]
	if !ok {
		return errs.New(errs.Invalid, "secret %s/%s has no key .dockerconfigjson", c.Namespace, c.Name)
	}
	if err := json.Unmarshal(raw, &conf); err != nil {
		return errs.New(errs.Invalid, "secret %s/%s: %w", c.Namespace, c.Name, err)
	}
	for host, a := range conf.Auths {
		cred := Credential{a.Username, a.Password}
		if a.Auth != "" {
			b, err := decodeBase64(a.Auth)
			if err != nil {
				return errs.New(errs.Invalid, "secret %s/%s: auth of %s: %w", c.Namespace, c.Name, host, err)
			}
			cred.Username, cred.Password, _ = strings.Cut(string(b), ":")
		}
		host = strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://")
		host, _, _ = strings.Cut(host, "/")
		if host == "index.docker.io" {
			host = "docker.io"
		}
		into[host] = cred
	}
	return nil
}
