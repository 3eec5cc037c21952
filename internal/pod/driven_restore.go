package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/checkpoint"
	"github.com/orlop-io/orlop/internal/platform/checkpoint/archive"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
	"github.com/orlop-io/orlop/internal/platform/overlay"
	"github.com/orlop-io/orlop/internal/platform/overlay/changes"
)

var faultRestorePrepared = fault.New("pod.restore.files-made")

// archived is the checkpoint that a container is made of; the zero value is of one that is made of an image.
//
// A restored process has the identity, the capabilities and the seccomp filter that it had: what an archive says is
// not held to what the client asks for. So it is a file of the host that the client names, which is root,
// and never an image, which anybody may have made.
type archived struct {
	location string
	spec     *specs.Spec
}

// checkpointed reads the archive where the container's image is the path of one, and makes of the request one for
// the image that the saved container had.
func (d *Driven) checkpointed(pod *drivenPod, c *ContainerConfig) (a archived, err error) {
	if !filepath.IsAbs(c.Image) {
		return a, nil
	}
	if r, err := d.p.handlers.runtime(pod.sandbox().Config.Handler); err != nil {
		return a, err
	} else if r != nil {
		return a, errs.New(errs.Unsupported, "runtime handler %s: only pods of the default handler are restored from checkpoints", r.Name)
	}
	if pod.w.nsPath(namespace.User) != "" {
		return a, errs.New(errs.Unsupported, "a pod with a user namespace of its own has id-mapped root filesystems, which CRIU does not restore")
	}
	from, err := archive.Read(c.Image)
	if err != nil {
		return a, err
	}
	if from.Spec.Process == nil || from.Spec.Linux == nil {
		return a, errs.New(errs.Corrupt, "checkpoint %s: its specification has no process", c.Image)
	}
	a = archived{c.Image, &from.Spec}
	if c.Image = from.Config.RootfsImageName; c.Image == "" {
		c.Image = from.Config.RootfsImage
	}
	if ref := from.Config.RootfsImageRef; ref != "" { // exactly that, whatever the name means now
		c.Image = ref
		if !strings.Contains(ref, ":") {
			c.Image = "sha256:" + ref
		}
	}
	if c.Image == "" || filepath.IsAbs(c.Image) {
		return a, errs.New(errs.Corrupt, "checkpoint %s does not name the image that its container had", a.location)
	}
	p := from.Spec.Process
	if c.TTY != p.Terminal {
		return a, errs.New(errs.Invalid, "checkpoint %s: its container had tty: %t; ask for the same", a.location, p.Terminal)
	}
	// For what is executed in it later.
	c.Command, c.Args, c.Variables, c.WorkingDir = p.Args, nil, p.Env, p.Cwd
	return a, nil
}

// fits refuses a specification in which the saved processes would not find what they had: the same mount
// points, and the same namespaces of their own.
func (a *archived) fits(oci *specs.Spec) error {
	if a.spec == nil {
		return nil
	}
	had, has := mountPoints(a.spec), mountPoints(oci)
	var missing, more []string
	for _, p := range had {
		if !slices.Contains(has, p) {
			missing = append(missing, p)
		}
	}
	for _, p := range has {
		if !slices.Contains(had, p) {
			more = append(more, p)
		}
	}
	if len(missing) > 0 {
		return errs.New(errs.Invalid, "the checkpoint has mounts that the request has not: %s; give a source for each", strings.Join(missing, ", "))
	}
	if len(more) > 0 {
		return errs.New(errs.Invalid, "the request has mounts that the checkpoint has not: %s; leave them out", strings.Join(more, ", "))
	}
	for _, n := range oci.Linux.Namespaces {
		if own := checkpoint.OwnNamespace(a.spec, n.Type); own != (n.Path == "") {
			return errs.New(errs.Invalid, "the checkpoint's container had its own %s namespace: %t, and the one that is asked for would have: %t; ask for the same", n.Type, own, !own)
		}
	}
	return checkpoint.Savable(oci)
}

func mountPoints(s *specs.Spec) (list []string) {
	for _, m := range s.Mounts {
		list = append(list, path.Join("/", m.Destination))
	}
	return list
}

// restoring is the start of a container that is made of a checkpoint.
type restoring struct {
	d      *Driven
	st     *DrivenContainer
	w      *worker
	layers []string
}

func (r *restoring) disk() string {
	return filepath.Join(r.d.p.o.Root, "containers", string(r.st.ID))
}

// files is where the archive is unpacked, which is removed with the container where forget is not reached.
func (r *restoring) files() string { return filepath.Join(r.disk(), "restore") }

func (r *restoring) forget() {
	if err := os.RemoveAll(r.files()); err != nil {
		r.d.p.log.Error("what a container was restored from could not be removed", "container", r.st.ID, "error", err)
	}
}

// prepare makes the files that the processes had, and says who restores them: our own executor by its command
// line, as the keeper knows to be the parent of what such a command leaves.
func (r *restoring) prepare(ctx context.Context) (*ociruntime.Runtime, *keeper.Restore, error) {
	p := r.d.p
	rt := &ociruntime.Runtime{Name: DefaultHandler, Path: filepath.Join(filepath.Dir(p.o.Keeper.Binary), "orlop-oci"), Root: filepath.Join(p.o.Run, "restored")}
	if _, err := os.Stat(rt.Path); err != nil {
		return nil, nil, errs.New(errs.FailedPrecondition, "%w; containers are restored by it: put it beside orlop-keeper", err)
	}
	from := &keeper.Restore{Images: filepath.Join(r.files(), archive.ImagesDir), Work: filepath.Join(r.w.runDir(), "containers", string(r.st.ID), "restore")}
	// Where the request before has come further its processes may be on their way, and write. Status would not
	// tell: the keeper shows no container that is not made whole. But it answers this only when it has done
	// whatever it is doing with one.
	err := p.runtime.do(ctx, func(k *keeper.Client) error { return k.Resume(ctx, string(r.st.ID)) })
	switch {
	case err == nil, errors.Is(err, errs.FailedPrecondition): // it runs, or has run
		return rt, from, nil
	case !errors.Is(err, errs.NotFound):
		return nil, nil, err
	}
	// A CRIU that cannot work is an error before anything is unpacked.
	images := checkpoint.Images{CRIU: "criu"}
	if _, err := images.Open(ctx); err != nil {
		return nil, nil, err
	}
	if err := os.RemoveAll(r.files()); err != nil {
		return nil, nil, err
	}
	if err := archive.Unpack(ctx, r.st.Checkpoint, r.files()); err != nil {
		return nil, nil, err
	}
	if err := r.apply(); err != nil {
		return nil, nil, err
	}
	faultRestorePrepared.Hit()
	return rt, from, nil
}

// apply does to the writable layer what the saved container had done to its.
func (r *restoring) apply() error {
	var gone []string
	raw, err := os.ReadFile(filepath.Join(r.files(), archive.DeletedFile))
	if err == nil {
		err = json.Unmarshal(raw, &gone)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.Corrupt, "%s: %w", archive.DeletedFile, err)
	}
	diff, err := os.Open(filepath.Join(r.files(), archive.RootfsDiffFile))
	if errors.Is(err, fs.ErrNotExist) {
		diff, err = os.Open(os.DevNull)
	}
	if err != nil {
		return err
	}
	defer diff.Close()
	work := filepath.Join(r.disk(), "work")
	if err := overlay.ForgetVolatile(work); err != nil {
		return err
	}
	f, err := overlay.Mount(overlay.Layers{Lower: r.layers, Upper: filepath.Join(r.disk(), "upper"), Work: work, Volatile: true})
	if err != nil {
		return err
	}
	defer f.Close()
	tree, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	defer tree.Close()
	return changes.Apply(tree, diff, gone)
}
