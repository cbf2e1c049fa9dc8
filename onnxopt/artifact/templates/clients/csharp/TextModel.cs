// From text to what the graph gives, by texts.tsv: the row of tokens, the inputs of the graph, the answer. Pooling, and
// layers and normalization behind it, lie in the graph and are not done again here.

using System.Globalization;
using System.Text;
using System.Text.Json;
using Microsoft.ML.Tokenizers;

internal sealed record Row(long[] Ids, long[] Types);

internal sealed record Feed(string Name, string Meaning, string Type, long[] Axes);

/// <summary>A golden text; a bare one is tokenized as it is, without special tokens.</summary>
internal sealed record TextCase(string Text, string Second, bool Bare, long[] Ids, double[] Expected, double Limit);

internal sealed class TextModel
{
    private readonly Dictionary<string, string> _settings = [];
    private readonly BertTokenizer _tokenizer;
    private readonly Dictionary<int, string> _labels = [];
    private long[][]? _single;
    private long[][]? _pair;
    private long _secondType;

    public List<Feed> Feeds { get; } = [];

    public List<TextCase> Cases { get; } = [];

    public TextModel(string folder)
    {
        var path = Path.Combine(folder, "clients", "csharp", "texts.tsv");
        foreach (var line in File.ReadAllText(path).Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            Take(line.Split('\t').Select(Unescaped).ToArray(), path);
        }
        _tokenizer = OpenTokenizer(Path.Combine(folder, "tokenizer.json"));
    }

    /// <summary>Whether Microsoft.ML.Tokenizers can be given the tokenizer; else why not.</summary>
    public static string? Refusal(string folder)
    {
        var path = Path.Combine(folder, "clients", "csharp", "texts.tsv");
        if (!File.Exists(path)) return "this client reads no text of the artifact; its README says why";
        var kind = File.ReadLines(path).First(line => line.StartsWith("set\ttokenizer\t", StringComparison.Ordinal)).Split('\t')[2];
        return kind == "bert"
            ? null
            : $"text is not read: Microsoft.ML.Tokenizers does not read tokenizer.json, and this client makes it of WordPiece as BERT has it alone, not of {kind}; feed ids";
    }

    public string Setting(string key) => _settings[key];

    /// <summary>Whether the numbers of an answer have labels.</summary>
    public bool Named => Setting("answer") is "scores" or "token_scores";

    /// <summary>A label; one that the artifact does not name is called by its place.</summary>
    public string Label(int place) => _labels.GetValueOrDefault(place, $"LABEL_{place}");

    private int Size(string key) => int.Parse(_settings[key], CultureInfo.InvariantCulture);

    /// <summary>The row of a text, or of two that are read together.</summary>
    public Row RowOf(string text, string second, bool bare)
    {
        if (bare) return Typed(Bare(text));
        if (_single is null) throw new NotSupportedException("the tokenizer does more than put tokens around a text");
        var limit = Size("limit");
        var first = Bare(Lowered(Setting("prompt") + text));
        if (second.Length == 0)
        {
            var kept = limit > 0 ? first.Take(Math.Max(0, limit - _single[0].Length - _single[1].Length)) : first;
            return Typed([.. _single[0], .. kept, .. _single[1]]);
        }
        if (_pair is null) throw new NotSupportedException("the tokenizer reads no pairs");
        var other = Bare(Lowered(second));
        var room = limit > 0 ? Math.Max(0, limit - _pair.Sum(part => part.Length)) : first.Length + other.Length;
        var (one, two) = KeptSizes(first.Length, other.Length, room);
        long[] head = [.. _pair[0], .. first.Take(one), .. _pair[1]];
        long[] tail = [.. other.Take(two), .. _pair[2]];
        return new Row([.. head, .. tail], [.. new long[head.Length], .. Enumerable.Repeat(_secondType, tail.Length)]);
    }

    /// <summary>How many tokens of two texts are kept where both may have so many: the longer one is cut first.</summary>
    public static (int First, int Second) KeptSizes(int first, int second, int room)
    {
        if (first + second <= room) return (first, second);
        var less = Math.Min(first, second);
        var more = less > room ? less : Math.Max(less, room - less);
        if (less + more > room) (less, more) = (room / 2, room / 2 + room % 2);
        return first <= second ? (less, more) : (more, less);
    }

    /// <summary>Where the tokens of a row begin in what the graph takes, which may be longer.</summary>
    private int Start(Row row) => Size("width") > 0 && Setting("side") == "left" ? Size("width") - row.Ids.Length : 0;

    /// <summary>Shape and numbers of an input, all rows of the graph alike; an empty cache has no positions.</summary>
    public (long[] Shape, long[] Values) Input(Feed feed, Row row)
    {
        if (feed.Meaning == "past")
        {
            return (feed.Axes.Select((size, axis) => size >= 0 ? size : axis == 0 ? 1L : 0L).ToArray(), []);
        }
        var (begin, count) = (Start(row), row.Ids.Length);
        var one = new long[Math.Max(Size("width"), count)];
        for (var place = 0; place < one.Length; place++)
        {
            var inside = place >= begin && place < begin + count;
            var at = Math.Clamp(place - begin, 0, count - 1);
            one[place] = feed.Meaning switch
            {
                "ids" => inside ? row.Ids[at] : Size("pad_id"),
                "types" => inside ? row.Types[at] : 0,
                "mask" => inside ? 1 : 0,
                "positions" => at,
                _ => throw new NotSupportedException($"input {feed.Name} is not made from text"),
            };
        }
        var rows = Math.Max(1, Size("rows"));
        return ([rows, one.Length], Enumerable.Repeat(one, rows).SelectMany(values => values).ToArray());
    }

    /// <summary>What the numbers of an output are made into: its first row, its last axis has so many entries.</summary>
    public double[] Answer(Row row, double[] output, int last)
    {
        switch (Setting("answer"))
        {
            case "embedding":
                return output;
            case "scores":
                return Scored(output);
            case "next_token":
                var final = output[^last..];
                return [Array.IndexOf(final, final.Max())];
            default:
                return output.Chunk(last).Skip(Start(row)).Take(row.Ids.Length).SelectMany(Scored).ToArray();
        }
    }

    private double[] Scored(double[] logits)
    {
        switch (Setting("scores"))
        {
            case "sigmoid":
                return logits.Select(value => 1 / (1 + Math.Exp(-value))).ToArray();
            case "softmax":
                var most = logits.Max();
                var sum = logits.Sum(value => Math.Exp(value - most));
                return logits.Select(value => Math.Exp(value - most) / sum).ToArray();
            default:
                return logits;
        }
    }

    private long[] Bare(string text) => _tokenizer.EncodeToIds(text, addSpecialTokens: false).Select(id => (long)id).ToArray();

    private string Lowered(string text) => Size("lowercase") == 1 ? text.ToLowerInvariant() : text;

    /// <summary>Make Microsoft's tokenizer of the vocabulary in tokenizer.json: it reads one token a line, by their ids.</summary>
    private BertTokenizer OpenTokenizer(string path)
    {
        using var content = JsonDocument.Parse(File.ReadAllBytes(path));
        var tokens = new SortedDictionary<int, string>();
        foreach (var entry in content.RootElement.GetProperty("model").GetProperty("vocab").EnumerateObject())
        {
            tokens[entry.Value.GetInt32()] = entry.Name;
        }
        var lines = Enumerable.Range(0, tokens.Keys.Max() + 1).Select(id => tokens.GetValueOrDefault(id, $"[no token {id}]"));
        using var stream = new MemoryStream(Encoding.UTF8.GetBytes(string.Join('\n', lines)));
        return BertTokenizer.Create(stream, new BertOptions
        {
            LowerCaseBeforeTokenization = Size("lowers") == 1,
            RemoveNonSpacingMarks = Size("accents") == 1,
            IndividuallyTokenizeCjk = Size("cjk") == 1,
        });
    }

    private void Take(string[] fields, string path)
    {
        switch (fields[0])
        {
            case "set":
                _settings[fields[1]] = fields[2];
                break;
            case "marks" when fields[1] == "single":
                _single = [Longs(fields[2]), Longs(fields[3])];
                break;
            case "marks":
                _pair = [Longs(fields[2]), Longs(fields[3]), Longs(fields[4])];
                _secondType = long.Parse(fields[5], CultureInfo.InvariantCulture);
                break;
            case "feed":
                Feeds.Add(new Feed(fields[1], fields[2], fields[3], Longs(fields[4])));
                break;
            case "label":
                _labels[int.Parse(fields[1], CultureInfo.InvariantCulture)] = fields[2];
                break;
            case "text" or "bare":
                var limit = double.Parse(fields[5], CultureInfo.InvariantCulture);
                Cases.Add(new TextCase(fields[1], fields[2], fields[0] == "bare", Longs(fields[3]), Doubles(fields[4]), limit));
                break;
            default:
                throw new FormatException($"{path} is malformed: {fields[0]}");
        }
    }

    private static Row Typed(long[] ids) => new(ids, new long[ids.Length]);

    private static string Unescaped(string field)
    {
        var whole = new StringBuilder();
        for (var place = 0; place < field.Length; place++)
        {
            var letter = field[place];
            if (letter == '\\' && place + 1 < field.Length)
            {
                letter = field[++place] switch { 't' => '\t', 'n' => '\n', 'r' => '\r', var other => other };
            }
            whole.Append(letter);
        }
        return whole.ToString();
    }

    private static long[] Longs(string field) =>
        field.Split(',', StringSplitOptions.RemoveEmptyEntries).Select(part => long.Parse(part, CultureInfo.InvariantCulture)).ToArray();

    private static double[] Doubles(string field) =>
        field.Split(',', StringSplitOptions.RemoveEmptyEntries).Select(part => double.Parse(part, CultureInfo.InvariantCulture)).ToArray();
}
