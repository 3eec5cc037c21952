package image

import (
	"log/slog"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/image/registry"
)

type registries = *registry.Client

func newRegistries(c config.Image, log *slog.Logger) (registries, error) {
	return registry.New(registry.Options{
		Registries: c.Registries, HostsDirs: c.HostsDirs, DockerConfig: c.DockerConfig, Parallel: c.Parallel, Log: log,
	})
}

// config returns the credentials as the registry client takes them.
func (a *Auth) config() *authn.AuthConfig {
	if a == nil {
		return nil
	}
	return &authn.AuthConfig{
		Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
}
