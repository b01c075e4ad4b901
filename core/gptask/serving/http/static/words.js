/* A text to words, as gptask.data.words.words does it in Python: published corpora are divided like this. */

const SPACELESS = ["Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom"]
  .map((script) => `\\p{Script=${script}}`).join("");
const UNSPACED = "(?:(?=[\\p{L}\\p{N}\\p{M}])(?:[\\p{scx=Han}\\p{scx=Hiragana}\\p{scx=Katakana}\\p{scx=Bopomofo}]" +
  `|(?!\\p{Nd})[${SPACELESS}]))`;
const WIDE = `(?:${UNSPACED}\\p{M}*|[\\u2e80-\\u303f\\uff00-\\uffef])`;
const LETTER = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]"; // Python's \w
const VISIBLE = "\\P{White_Space}";
const WORD = new RegExp([
  WIDE,
  `https?://(?:(?!${WIDE})${VISIBLE})+|[@#](?:(?!${WIDE})${LETTER})+`,
  "\\p{Nd}+(?:[.,:]\\p{Nd}+)+",
  "(?:(?![\\p{Nd}_])" + LETTER + "\\.){2,}",
  `(?:['’](?:s|m|d|re|ve|ll)|n['’]t)(?!${LETTER})`,
  `(?:(?!${WIDE}|n['’]t(?!${LETTER}))${LETTER})+(?:[\\-&](?:(?!${WIDE})${LETTER})+)*`,
  `\\.{2,}|${VISIBLE}`,
].join("|"), "giu");

/** The words of a text, each with the place where it begins. */
export function placedWords(text) {
  return [...text.matchAll(WORD)].map((match) => ({ word: match[0], start: match.index }));
}
