package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/checkpoint"
	"github.com/orlop-io/orlop/internal/platform/checkpoint/archive"
	"github.com/orlop-io/orlop/internal/platform/criu"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
	"github.com/orlop-io/orlop/internal/platform/overlay/changes"
)

var (
	faultCheckpointIntent  = fault.New("pod.checkpoint.intent-recorded")
	faultCheckpointStill   = fault.New("pod.checkpoint.processes-saved")
	faultCheckpointWritten = fault.New("pod.checkpoint.archive-written")
	faultCheckpointDone    = fault.New("pod.checkpoint.archive-named")
)

// CheckpointRequest says how a container is saved.
type CheckpointRequest struct {
	// Location is the absolute path of the archive, which must not exist.
	Location string
	// Timeout bounds it all; 0: only ctx does.
	Timeout time.Duration
	// Status is what the client's protocol says of the container, as JSON, for whoever reads the archive.
	Status []byte
}

// CheckpointContainer saves a running container in an archive (archive.Write), and lets it go on:
// its processes stand still while memory and writable layer are read. On error there is no archive,
// and the container goes on.
//
// The daemon has CRIU do it, and not the keeper: CRIU goes on by itself if its caller dies, to let the
// processes go at its next stage, and so the container depends on neither.
func (d *Driven) CheckpointContainer(ctx context.Context, id ContainerID, r CheckpointRequest) (err error) {
	c, err := d.container(id)
	if err != nil {
		return err
	}
	if err := archive.CheckLocation(r.Location); err != nil {
		return err
	}
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, r.Timeout, errs.New(errs.Timeout, "it was not done within %s", r.Timeout))
		defer cancel()
	}
	unlock, err := d.locks.Lock(ctx, string(id)) // nobody removes it meanwhile
	if err != nil {
		return err
	}
	defer unlock()
	s, err := d.saving(ctx, c)
	if err != nil {
		return fmt.Errorf("checkpoint container %s: %w", id, err)
	}
	defer s.release()
	if err := s.do(ctx, &r); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", id, err)
	}
	return nil
}

// saving is a checkpoint on its way.
type saving struct {
	d       *Driven
	st      DrivenContainer
	pod     *drivenPod
	spec    *specs.Spec
	layers  []string
	release func() // of the layers
	runtime *ociruntime.Runtime
	tool    *criu.CRIU
	group   *cgroup.Group
	pid     int
	dir     string // of what the archive is made of
}

// checkpointIntent is written down before anything is made, for whoever comes after a daemon that was
// killed: what is to be removed, and whether the container is to be thawed.
type checkpointIntent struct {
	Archive string // a temporary name
	Paused  bool   `json:",omitempty"`
}

const intentFile = "intent.json"

func (d *Driven) checkpointDir() string { return filepath.Join(d.p.o.Root, "checkpoints") }

// saving refuses what cannot be saved, before anything is touched.
func (d *Driven) saving(ctx context.Context, c *drivenContainer) (_ *saving, err error) {
	s := &saving{d: d, st: c.status(), pod: c.pod}
	if s.st.State != DrivenRunning {
		return nil, errs.New(errs.FailedPrecondition, "it is %s; only a running one can be saved", s.st.State)
	}
	box := c.pod.sandbox()
	if s.runtime, err = d.p.handlers.runtime(box.Config.Handler); err != nil {
		return nil, err
	}
	if c.pod.w.nsPath(namespace.User) != "" {
		return nil, errs.New(errs.Unsupported, "its pod has a user namespace of its own, and so an id-mapped root filesystem, which CRIU does not save")
	}
	images := checkpoint.Images{CRIU: "criu"}
	if s.tool, err = images.Open(ctx); err != nil {
		return nil, err
	}
	st, err := d.p.runtime.status(ctx, string(s.st.ID))
	if err != nil {
		return nil, err
	}
	if st.State != keeper.Running {
		return nil, errs.New(errs.FailedPrecondition, "it is %s; only a running one can be saved", st.State)
	}
	s.pid = st.PID
	if s.group, err = d.p.cgroups.Load(st.Cgroup); err != nil {
		return nil, err
	}
	img, err := d.p.o.Images.Find(ctx, s.st.ImageID)
	if err != nil {
		return nil, err
	}
	conf := s.st.Config
	if s.spec, s.layers, s.release, err = d.buildContainer(ctx, c.pod, s.st.ID, &conf, img, false); err != nil {
		return nil, err
	}
	if err = d.hooks.Adjust(s.spec, s.st.Adjustment); err == nil {
		err = checkpoint.Savable(s.spec)
	}
	if err != nil {
		s.release()
		return nil, err
	}
	s.dir = filepath.Join(d.checkpointDir(), string(s.st.ID))
	return s, nil
}

func (s *saving) do(ctx context.Context, r *CheckpointRequest) (err error) {
	intent := checkpointIntent{Archive: archive.Temporary(r.Location, string(s.st.ID)), Paused: s.runtime != nil}
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	defer func() {
		if e := os.RemoveAll(s.dir); e != nil {
			s.d.p.log.Error("what a checkpoint was made of could not be removed", "container", s.st.ID, "error", e)
		}
	}()
	if err := os.RemoveAll(s.work()); err != nil {
		return err
	}
	for _, dir := range []string{s.content(archive.ImagesDir), s.work()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(intent)
	if err == nil {
		err = atomicfile.Write(filepath.Join(s.dir, intentFile), raw, 0o600, true)
	}
	if err != nil {
		return err
	}
	faultCheckpointIntent.Hit()
	if s.runtime == nil {
		err = s.dump(ctx)
	} else {
		err = s.byRuntime(ctx)
	}
	if err != nil {
		return err
	}
	if err := s.describe(r); err != nil {
		return err
	}
	err = archive.Write(ctx, s.content(""), r.Location, string(s.st.ID), faultCheckpointWritten.Hit)
	if err == nil {
		faultCheckpointDone.Hit()
	}
	return err
}

// content is the path of something that is to be in the archive.
func (s *saving) content(name string) string { return filepath.Join(s.dir, "content", name) }

// work is the directory of CRIU's log, which is in an archive, and stays with the container where there is
// none, to be read.
func (s *saving) work() string {
	return filepath.Join(s.pod.w.runDir(), "containers", string(s.st.ID), "checkpoint")
}

// dump has CRIU save a container of our own executor. The writable layer is read while CRIU still holds
// the processes.
func (s *saving) dump(ctx context.Context) error {
	c := checkpoint.Container{PID: s.pid, Spec: s.spec, Group: s.group}
	err := c.Dump(ctx, s.tool, checkpoint.Options{
		Images: checkpoint.Images{Dir: s.content(archive.ImagesDir), Work: s.work(),
			// What a server holds must not keep it from being saved, nor be cut by it.
			TCPEstablished: true, FileLocks: true},
		LeaveRunning: true,
		Still: func() error {
			faultCheckpointStill.Hit()
			return s.layer()
		},
	})
	if err == nil {
		return nil
	}
	// A CRIU that was killed may have left the group frozen.
	if frozen, ferr := s.group.Frozen(); ferr == nil && frozen {
		err = errors.Join(err, s.group.Thaw(context.WithoutCancel(ctx)))
	}
	return err
}

// byRuntime has another runtime save the container. It is paused around that, by the keeper: these have no
// moment at which to read the writable layer.
func (s *saving) byRuntime(ctx context.Context) (err error) {
	id := string(s.st.ID)
	whole := context.WithoutCancel(ctx)
	if err := s.d.p.runtime.do(whole, func(k *keeper.Client) error { return k.Pause(whole, id) }); err != nil {
		return err
	}
	defer func() {
		if e := s.d.p.runtime.do(whole, func(k *keeper.Client) error { return k.Resume(whole, id) }); e != nil {
			err = errors.Join(err, fmt.Errorf("the container stands still, and could not be let go on: %w", e))
		}
	}()
	r := *s.runtime
	r.Systemd = s.d.p.cgroups.Layout().Driver == cgroup.Systemd
	c := ociruntime.Container{Runtime: &r, ID: id, Dir: s.dir}
	if err := c.Checkpoint(ctx, s.content(archive.ImagesDir), s.work()); err != nil {
		return criu.Explain(err, filepath.Join(s.work(), "dump.log"))
	}
	faultCheckpointStill.Hit()
	return s.layer()
}

// layer reads the writable layer.
func (s *saving) layer() error {
	f, err := os.OpenFile(s.content(archive.RootfsDiffFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	mounted := make(map[string]bool)
	for _, m := range s.spec.Mounts {
		mounted[path.Join("/", m.Destination)] = true
	}
	upper := filepath.Join(s.d.p.o.Root, "containers", string(s.st.ID), "upper")
	gone, err := changes.Diff(f, upper, s.layers, func(p string) bool { return mounted[p] })
	if err != nil || len(gone) == 0 {
		return err
	}
	return archive.WriteJSON(s.content(""), archive.DeletedFile, gone)
}

// describe adds what is said of the container.
func (s *saving) describe(r *CheckpointRequest) error {
	dir, conf, box := s.content(""), &s.st.Config, s.pod.sandbox()
	spec := *s.spec
	if spec.Root == nil {
		spec.Root = &specs.Root{Path: "rootfs", Readonly: conf.Security.ReadOnlyRoot}
	}
	annotations, err := json.Marshal(conf.Annotations)
	if err != nil {
		return err
	}
	spec.Annotations = map[string]string{
		"io.container.manager": "orlop",
		// Where tools look for names: containerd's, and those that CRI-O restores by.
		"io.kubernetes.cri.container-name":    conf.Name,
		"io.kubernetes.cri.sandbox-name":      box.Config.Name,
		"io.kubernetes.cri.sandbox-namespace": box.Config.Namespace,
		"io.kubernetes.cri.sandbox-uid":       box.Config.UID,
		"io.kubernetes.cri-o.Annotations":     string(annotations),
	}
	for k, v := range s.spec.Annotations {
		spec.Annotations[k] = v
	}
	handler := box.Config.Handler
	if handler == "" {
		handler = DefaultHandler
	}
	_, image, ok := strings.Cut(s.st.ImageID, ":")
	if !ok {
		image = s.st.ImageID
	}
	var binds []archive.BindMount
	for _, m := range s.spec.Mounts {
		info, err := os.Stat(m.Source)
		if m.Type != "bind" && !slices.Contains(m.Options, "rbind") && !slices.Contains(m.Options, "bind") || err != nil {
			continue
		}
		b := archive.BindMount{Source: m.Source, Destination: m.Destination, FileType: "file", Permissions: uint32(info.Mode().Perm())}
		if info.IsDir() {
			b.FileType = "directory"
		}
		binds = append(binds, b)
	}
	for name, v := range map[string]any{
		archive.SpecFile: &spec,
		archive.ConfigFile: archive.Config{ID: string(s.st.ID), Name: conf.Name, RootfsImage: conf.Image, RootfsImageRef: image, RootfsImageName: conf.Image,
			OCIRuntime: handler, CreatedTime: s.st.CreatedAt, CheckpointedAt: time.Now()},
		archive.TimesFile:      archive.Times{CreatedAt: s.st.CreatedAt.UnixNano(), StartedAt: s.st.StartedAt.UnixNano(), Pid: uint32(s.pid)},
		archive.BindMountsFile: binds,
		archive.StatusFile:     json.RawMessage(r.Status),
	} {
		if raw, ok := v.(json.RawMessage); ok && len(raw) == 0 {
			continue
		}
		if err := archive.WriteJSON(dir, name, v); err != nil {
			return err
		}
	}
	return s.logs()
}

// logs adds CRIU's log and statistics, and the container's log as it is now.
func (s *saving) logs() error {
	for _, name := range []string{"dump.log", "stats-dump"} {
		f, err := os.Open(filepath.Join(s.work(), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // another runtime's affair
		}
		if err != nil {
			return err
		}
		if err := s.copied(name, f); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(s.work()); err != nil {
		return err
	}
	// Others than we may write where the container's log is.
	from := s.pod.sandbox().Config.LogDir
	rel, err := filepath.Rel(from, s.st.LogPath)
	if s.st.LogPath == "" || from == "" || err != nil {
		return nil
	}
	root, err := os.OpenRoot(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil // removed, or a link that leads out: the container is what matters
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil
	}
	return s.copied(archive.ContainerLog, f)
}

// copied adds what a file has, and closes it.
func (s *saving) copied(name string, f *os.File) error {
	defer f.Close()
	to, err := os.OpenFile(s.content(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, f)
	return errors.Join(err, to.Close())
}

// sweepCheckpoints removes what a daemon that was killed has left of checkpoints, and lets containers go on
// that stand still for one.
func (d *Driven) sweepCheckpoints(ctx context.Context) error {
	ents, err := os.ReadDir(d.checkpointDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range ents {
		id, dir := ContainerID(e.Name()), filepath.Join(d.checkpointDir(), e.Name())
		raw, err := os.ReadFile(filepath.Join(dir, intentFile))
		var intent checkpointIntent
		if err == nil && json.Unmarshal(raw, &intent) == nil && intent.Archive != "" {
			if err := os.Remove(intent.Archive); err != nil && !errors.Is(err, fs.ErrNotExist) {
				d.p.log.Error("an archive that was not finished could not be removed", "archive", intent.Archive, "error", err)
			}
		}
		// A CRIU that is still at it finds its directory gone, and gives up: before it has, it may
		// freeze the container again.
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := checkpoint.Abandoned(ctx, dir); err != nil {
			return err
		}
		d.thaw(ctx, id, intent.Paused)
		d.p.log.Info("a checkpoint was not finished", "container", id)
	}
	return nil
}

// thaw lets a container go on.
func (d *Driven) thaw(ctx context.Context, id ContainerID, paused bool) {
	st, err := d.p.runtime.status(ctx, string(id))
	if err != nil {
		return // it is gone
	}
	switch {
	case paused && st.State == keeper.Paused:
		err = d.p.runtime.do(ctx, func(k *keeper.Client) error { return k.Resume(ctx, string(id)) })
	case st.State == keeper.Running:
		var g *cgroup.Group
		if g, err = d.p.cgroups.Load(st.Cgroup); err == nil {
			err = g.Thaw(ctx)
		}
	}
	if err != nil {
		d.p.log.Error("a container stands still for a checkpoint that was not finished, and could not be let go on", "container", id, "error", err)
	}
}
