package focus

import "testing"

// TestRED offers redundant audio first to those who know it, so that they send it, and to nobody when it is left out.
func TestRED(t *testing.T) {
	for _, x := range []struct{ knows, left, first bool }{{true, false, true}, {false, false, false}, {true, true, false}} {
		c := &Conference{cfg: Config{NoRED: x.left}}
		p := &participant{}
		c.setFeatures(p, features{red: x.knows})
		types := audioContent(*p.features).PayloadTypes
		if first := types[0].Name == "red"; first != x.first {
			t.Errorf("%+v: offered %+v", x, types)
		}
	}
}
