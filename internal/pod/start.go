package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// startContainer begins a new incarnation, or completes one that a daemon before us
// had begun.
func (w *worker) startContainer(ctx context.Context, spec *Spec, c *Container) (err error) {
	ctx, span := w.span(ctx, "pod container")
	defer span.End(&err)
	span.Set("k8s.container.name", c.Name)
	img, err := w.image(ctx, spec, c)
	if err != nil {
		return &startError{"ErrImagePull", err}
	}
	mounts, devices, err := w.mounts(ctx, spec, c)
	if err != nil {
		return &startError{"CreateContainerConfigError", err}
	}
	pod := w.status()
	env, vars, err := resolveEnv(c, img.Config.Env, envSource{
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
	if st.State != Waiting || id == "" || st.ImageID != img.ID {
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
	disk, err := w.layerDir(ctx, c, id)
	if err != nil {
		return err
	}
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
	if err := errors.Join(os.Chmod(message, 0o666), giveToRoot(spec, message)); err != nil {
		return err
	}
	path := c.TerminationMessagePath
	if path == "" {
		path = "/dev/termination-log"
	}
	mounts = append(mounts, bind(message, path, false))
	if mounts, err = w.subPaths(dir, c, mounts, vars); err != nil {
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
	oci, err := buildSpec(specInput{
		Pod: spec, Container: c, Image: img.Config, Env: env, Layers: layers, Mounts: mounts, Devices: devices,
		Net: w.nsPath(namespace.Net), IPC: w.nsPath(namespace.IPC), UTS: w.nsPath(namespace.UTS), PID: pid, User: w.nsPath(namespace.User),
		SeccompDir: w.p.o.SeccompDir, MaxPIDs: w.p.o.MaxPIDs, CgroupParent: w.group(),
		Expand: func(s string) string { return expand(s, vars) },
	})
	if err != nil {
		return &startError{"CreateContainerConfigError", err}
	}
	runtime, err := w.p.handlers.runtimeFor(ctx, spec, oci.Mounts)
	if err != nil {
		return &startError{"CreateContainerConfigError", err}
	}
	rootfs := executor.Rootfs{Lower: layers, Upper: filepath.Join(disk, "upper"), Work: filepath.Join(disk, "work"), IDMap: spec.Users != nil}
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
		Labels:    map[string]string{"pod": string(w.id), "container": c.Name},
		Runtime:   runtime,
	})
	faultContainerStarted.Hit()
	if err != nil {
		return err
	}
	hook := c.PostStart != nil
	err = w.updateContainer(c.Name, func(s *ContainerStatus) {
		s.State, s.Reason, s.Message, s.PID, s.StartedAt, s.HookPending = RunningNow, "", "", started.PID, started.At, hook
		s.begun(c)
	})
	if err != nil {
		return err
	}
	faultContainerDone.Hit()
	w.note(c.Name, false, "Started", "started container "+c.Name)
	if hook {
		return w.postStart(ctx, spec, c, id)
	}
	w.ensureProbes(spec, c, id)
	return nil
}

// begun says what the start of a container makes of it by itself: what has no hook and
// no probe to wait for has started, and is ready.
func (s *ContainerStatus) begun(c *Container) {
	s.Started = !s.HookPending && c.Startup == nil
	s.Ready = s.Started && c.Readiness == nil
}

// postStart runs the hook. The container has not started before it has ended; if it
// fails the container is ended, and starts again if its policy says so.
func (w *worker) postStart(ctx context.Context, spec *Spec, c *Container, id ContainerID) error {
	o := w.hook(ctx, c, id, &c.PostStart.Action)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	faultContainerHooked.Hit()
	if o.Unknown {
		return nil // the keeper is away; the worker is woken when it is back
	}
	if !o.OK {
		w.note(c.Name, true, "FailedPostStartHook", "postStart hook of container "+c.Name+": "+o.Message)
		w.restart(c, spec.TerminationGrace)
		return nil
	}
	err := w.updateContainer(c.Name, func(s *ContainerStatus) {
		if s.ID == id && s.State == RunningNow {
			s.HookPending = false
			s.begun(c)
		}
	})
	if err != nil {
		return err
	}
	w.ensureProbes(spec, c, id)
	w.poke() // sidecars: the next may start
	return nil
}

// layerDir returns where the container's writable layer goes: on the root disk, or with a
// limit of its ephemeral storage into scratch space of that size.
func (w *worker) layerDir(ctx context.Context, c *Container, id ContainerID) (string, error) {
	if c.Resources.EphemeralBytes == 0 {
		return filepath.Join(w.p.o.Root, "containers", string(id)), nil
	}
	// No volume of the pod can have this name: theirs have no dot.
	space, err := w.p.o.Volumes.PublishScratch(ctx, w.id, "layer."+c.Name, c.Resources.EphemeralBytes)
	if err != nil {
		return "", fmt.Errorf("writable layer of container %s: %w", c.Name, err)
	}
	layers := filepath.Join(space, "layers")
	ents, err := os.ReadDir(layers)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, e := range ents { // incarnations before this one
		if e.Name() != string(id) {
			if err := removeTree(ctx, filepath.Join(layers, e.Name())); err != nil {
				return "", err
			}
		}
	}
	return filepath.Join(layers, string(id)), nil
}

func (w *worker) configData(spec *Spec, secret bool, name string) (map[string][]byte, error) {
	c, err := w.p.Config(context.Background(), secret, spec.Namespace, name)
	return c.Data, err
}
