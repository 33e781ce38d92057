// A step to explain the panel with, before there is one to show.

export const EXAMPLE = {
  choices: [{ delta: { content: " over the hills and" } }],
  falcon: {
    tokens: [
      { text: " over", source: "drafted" },
      { text: " the", source: "drafted" },
      { text: " hills", source: "drafted" },
      { text: " and", source: "bonus" },
    ],
    tree: {
      tokens: [
        " flies", " over", " the", " sea", ".", " hills", " at", " mountain", " high",
        " above", " the", " away", " down", " a", " field", " to",
      ],
      parents: [-1, 0, 1, 2, 3, 2, 5, 2, 0, 8, 9, 0, 0, 1, 13, 11],
      path: [1, 2, 5],
    },
    passes: 2,
    draft_ms: 2.1,
    verify_ms: 10.9,
  },
};
