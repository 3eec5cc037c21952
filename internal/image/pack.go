package image

import (
	"context"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// PackOptions describe an image made from files of this host.
type PackOptions struct {
	// Source is a directory, which becomes the root filesystem, or one executable,
	// which becomes /bin/<its name>; for an executable /tmp, /etc/passwd and
	// /etc/group are made too.
	Source string
	// Ref is the image's name.
	Ref        string
	Entrypoint []string // empty, and Cmd empty: the executable
	Cmd        []string
	Env        []string // NAME=value
	User       string
	WorkDir    string
	Labels     map[string]string
	Ports      []string // 8080, 8080/tcp, 53/udp
}

// Pack makes an image of one layer and names it. The same files and options give
// the same digest wherever and whenever it is packed: entries are sorted, times
// are the epoch, owners are root.
func (s *Store) Pack(ctx context.Context, o PackOptions) (Image, error) {
	return Image{}, errs.New(errs.Unsupported, "not built yet")
}
