package image

import "github.com/orlop-io/orlop/internal/base/config"

type registries struct{}

func newRegistries(c config.Image) (registries, error) { return registries{}, nil }
func (registries) close()                              {}
