package cgroup

import (
	"context"

	"github.com/orlop-io/orlop/internal/base/errs"
)

type systemd struct{}

type unit struct {
	path  string
	scope bool
}

func translate(p string) (*unit, error)                       { return &unit{path: p}, nil }
func (s *systemd) create(g *Group, p *plan) error             { return errNotYet }
func (s *systemd) start(g *Group, pid int) error              { return errNotYet }
func (s *systemd) update(g *Group, p *plan) error             { return errNotYet }
func (s *systemd) remove(ctx context.Context, g *Group) error { return errNotYet }

var errNotYet = errs.New(errs.Unsupported, "cgroup: the systemd driver is not built yet; use cgroupfs")
