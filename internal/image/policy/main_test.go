package policy

import (
	"testing"

	"github.com/orlop-io/orlop/internal/image/imagetest"
)

func TestMain(m *testing.M) { imagetest.Main(m) }
