package config

import (
	"strconv"
	"strings"
)

// similar is the word that a person may have meant, or "".
func similar(s string, words []string) string {
	s = strings.ReplaceAll(strings.ToLower(strings.TrimSpace(s)), "-", "_")
	best, least := "", 3
	for _, word := range words {
		if d := distance(s, word); d < least && 2*d < len(word) {
			best, least = word, d
		}
		if s == word+"s" || strings.ReplaceAll(s, "_", "") == strings.ReplaceAll(word, "_", "") {
			return word
		}
	}
	if best == "" && len(s) > 4 {
		best = begun(s[:len(s)-1], words)
	}
	return best
}

// begun is the only word that begins with s, or "".
func begun(s string, words []string) (only string) {
	for _, word := range words {
		switch {
		case !strings.HasPrefix(word, s):
		case only != "":
			return ""
		default:
			only = word
		}
	}
	return only
}

// distance is how many letters must be put in, left out, replaced or swapped with their neighbour (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 2*len(b) {
		return len(a)
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// printable is a key as it is, or quoted where it would be hard to see.
func printable(s string) string {
	if quoted := strconv.Quote(s); s == "" || quoted != `"`+s+`"` {
		return quoted
	}
	return s
}
