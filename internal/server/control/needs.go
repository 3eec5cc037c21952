package control

import (
	"context"
	"io"
	"net"

	"github.com/opencontainers/go-digest"

	"github.com/orlop-io/orlop/internal/image"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/volume"
)

// What the server needs of the domains; *pod.Pods, *image.Store and *volume.Volumes
// are it. Their comments hold.

// Pods is the domain of pods.
type Pods interface {
	Apply(ctx context.Context, spec pod.Spec) (pod.Change, error)
	Delete(ctx context.Context, k pod.Key, o pod.DeleteOptions) error
	Get(ctx context.Context, k pod.Key) (pod.Pod, error)
	List(ctx context.Context) ([]pod.Pod, error)

	ApplyConfig(ctx context.Context, c pod.Config) (pod.Change, error)
	DeleteConfig(ctx context.Context, secret bool, namespace, name string) error
	Config(ctx context.Context, secret bool, namespace, name string) (pod.Config, error)
	Configs(ctx context.Context, secret bool) ([]pod.Config, error)

	Exec(ctx context.Context, k pod.Key, o pod.ExecOptions) (*pod.Session, error)
	Attach(ctx context.Context, k pod.Key, o pod.AttachOptions) (*pod.Session, error)
	Logs(ctx context.Context, k pod.Key, container string, previous bool) (pod.Logs, error)
	Dial(ctx context.Context, k pod.Key, port uint16) (net.Conn, error)
	CopyFrom(ctx context.Context, k pod.Key, container, from string, w io.Writer) error
	CopyTo(ctx context.Context, k pod.Key, container, to string, r io.Reader) error
	Events(ctx context.Context, f pod.EventFilter, fn func(pod.Event) error) error
	Stats(ctx context.Context, namespace, name string) ([]pod.Stats, error)
	UsedImages() map[string]bool
}

// Images is the domain of images.
type Images interface {
	List(ctx context.Context) ([]image.Image, error)
	Resolve(ctx context.Context, nameOrID string) (image.Image, error)
	Pull(ctx context.Context, ref string, o image.PullOptions) (image.Image, error)
	Remove(ctx context.Context, nameOrID string, inUse func(digest.Digest) bool) (image.Removed, error)
	Prune(ctx context.Context, o image.PruneOptions) (image.Pruned, error)
	Tag(ctx context.Context, nameOrID, name string) error
	Pack(ctx context.Context, o image.PackOptions) (image.Image, error)
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]image.Image, error)
	ImportPath(ctx context.Context, path string, o image.ImportOptions) ([]image.Image, error)
	Export(ctx context.Context, namesOrIDs []string, w io.Writer, f image.Format) error
	ExportDir(ctx context.Context, namesOrIDs []string, dir string) error
	Usage(ctx context.Context) (bytes, inodes int64, err error)
}

// Volumes is the domain of volumes.
type Volumes interface {
	CreateClaim(ctx context.Context, c volume.Claim) (volume.Claim, error)
	DeleteClaim(ctx context.Context, namespace, name string) error
	Claim(ctx context.Context, namespace, name string) (volume.Claim, error)
	Claims(ctx context.Context) ([]volume.Claim, error)
	Scratch(ctx context.Context) ([]volume.Claim, error)
	Stats(ctx context.Context) (volume.Stats, error)
	Trim(ctx context.Context) (int64, error)
}
