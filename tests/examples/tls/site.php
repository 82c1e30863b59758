<?php
// php -S 127.0.0.1:3000 site.php
$_SERVER['HTTPS'] = ($_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '') === 'https' ? 'on' : 'off';
echo $_SERVER['HTTPS'] === 'on' ? 'https' : 'http';
